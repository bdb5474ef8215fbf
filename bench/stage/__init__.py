"""The real-time stage beside what people would use instead; `bench/compare_stage.py` is the program."""
