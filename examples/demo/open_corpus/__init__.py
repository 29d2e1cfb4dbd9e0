"""Open-vocabulary recordings of people, from Debian's packages: what `open_speech.py` is made of."""
