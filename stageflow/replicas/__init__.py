"""One run in several processes, each of which runs the whole pipeline over shards of the input that it is leased.

What decides is pure: :mod:`~stageflow.replicas.coordinator` (who has which shard, and what becomes of those of a
replica that is lost) and :mod:`~stageflow.replicas.shares` (how much of a limit each may use).
:mod:`~stageflow.replicas.fleet` leases and listens, with :mod:`~stageflow.replicas.roster` for the processes,
:mod:`~stageflow.replicas.sharding` for the input and :mod:`~stageflow.replicas.writing` for the one output;
:mod:`~stageflow.replicas.replica` is what runs in each of them, between the leases
(:mod:`~stageflow.replicas.leased`) and the wire (:mod:`~stageflow.replicas.uplink`).
"""
