"""A run on a Ray cluster: actors that coordinate and that run the job, and what starts them.

Importing this loads nothing of Ray; :meth:`RayEngine.start` does.
"""

from stageflow.cluster.ray.engine import RayEngine

__all__ = ["RayEngine"]
