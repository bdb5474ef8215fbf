"""The engine under load: overlap, saturation, overload, faults."""
