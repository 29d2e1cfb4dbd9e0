"""Parts of `open_speech.py`: open-vocabulary recordings of people, from Debian's packages."""
