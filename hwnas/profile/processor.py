"""What a processor is called, by what Linux says of it in /proc/cpuinfo."""

from __future__ import annotations

NAMES = ("model name", "Model", "Hardware")


def processor_name(cpuinfo: str) -> str:
    """The processor's name; empty where the text has none.

    A virtual machine may hide the number ("AMD EPYC"); as the name of several generations it is followed by the family
    and the model then.
    """
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        field, _, value = line.partition(":")
        fields.setdefault(field.strip(), " ".join(value.split()))
    name = next((fields[field] for field in NAMES if fields.get(field)), "")
    family, model = fields.get("cpu family"), fields.get("model")
    if not name or any(map(str.isdigit, name)) or not (family and model):
        return name
    return f"{name} (family {family} model {model})"
