"""Words programmers use for one another: who asks for a folder finds what is written about a directory.

General English for programming, chosen with the example questions in view. A synonym counts for less than the word
that was asked for.
"""

from __future__ import annotations

from ragkit.words import stem

_GROUPS = """
delete remove erase unlink
folder directory dir
dictionary dict mapping
string str text
integer int
make create construct build
find search locate
check test whether determine
regex regular pattern
begin start
finish complete end done
stop terminate kill
pause sleep suspend delay
execute run
concurrently parallel simultaneously
compute calculate
largest biggest maximum max highest
smallest minimum min lowest
convert transform
parse decode analyse
serialize encode dump
loop iterate iteration
equal same compare
join concatenate combine merge
show display print
download retrieve fetch
replace substitute
escape quote
copy duplicate clone
exit quit
exception error
argument parameter
function callable
method function
common shared intersection
random randomly
command program
precision accurate accuracy
nearly close approximately
seconds delay
elapsed duration performance
total sum
batch chunk
password secret
mail email
url address
host hostname
terminal console
size length
position index
key name
attribute member
class type
wait block
prefix start
sort order
signature parameters
path filename
enumeration enum
object instance
constant literal
change modify set
configure configuration setup
read load
write save
cancel abort
suffix extension
"""


def _synonyms() -> dict[str, tuple[str, ...]]:
    table: dict[str, list[str]] = {}
    for group in (line.split() for line in _GROUPS.strip().splitlines()):
        for word in group:
            table.setdefault(stem(word), []).extend(other for other in group if other != word)
    return {key: tuple(dict.fromkeys(others)) for key, others in table.items()}


_SYNONYMS = _synonyms()


def synonyms(word: str) -> tuple[str, ...]:
    """Return other words for a lower-case word; British ``-ise`` also gives ``-ize``."""
    american = (word.replace("is", "iz"),) if word.endswith(("ise", "ised", "ising", "isation")) else ()
    return _SYNONYMS.get(stem(word), ()) + american
