"""Tiny packages shaped like those of the open-vocabulary corpus: the same formats, a few tones for voices."""

import io
import struct

import numpy as np
import soundfile


def tone(seconds=1.0, pitch=200.0, rate=16_000):
    time = np.arange(int(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * pitch * time)).astype(np.float32)


def sound_bytes(seconds=1.0, pitch=200.0, kind="WAV"):
    file = io.BytesIO()
    soundfile.write(file, tone(seconds, pitch), 16_000, format=kind)
    return file.getvalue()


def string(text, alignment=2, at=0):
    """A string as scripts hold it, at the offset `at`: its length, its bytes and padding."""
    if not text:
        return b"\0"
    data = bytes([len(text)]) + text.encode("cp437")
    return data + bytes(-(at + len(data)) % alignment)


def dialogue(key, joe, person, greeting="0"):
    """A `.DOG` file: the header, one level, Joe's lines, the person's lines, no cutaway, the second greetings."""
    header = bytearray(32)
    body = bytearray(96)
    for index, lines in enumerate((joe, person)):
        if index:
            struct.pack_into(">H", header, 22, 32 + len(body))
        for number, text in lines.items():
            body += struct.pack(">2h", 0, number)
            body += string(text, 4, at=32 + len(body))
    struct.pack_into(">H", header, 24, 32 + len(body))
    body += struct.pack(">2h", 0, 0) + string("", at=0) + b"\0"
    struct.pack_into(">H", header, 26, 32 + len(body))
    body += string(greeting, at=32 + len(body))
    body += string("0", at=32 + len(body))
    struct.pack_into(">5h", header, 0, -1, 0, key, len(joe), len(person))
    return bytes(20) + bytes(header) + bytes(body)


def cutaway(*lines):
    """A `.CUT` file: the header, no objects' data, the way Joe looks, the lines."""
    body = bytearray(string("*FL", at=12))
    for line in lines:
        body += string(line, at=12 + len(body))
    return bytes(20) + struct.pack(">6h", 0, len(lines), 0, 0, 12, 0) + bytes(body)


def write_queen(folder, files):
    """`queen.1c` of `files`, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    table, data = b"", b""
    start = 15 + 21 * len(files)
    for name, content in files.items():
        table += struct.pack(">12sBII", name.encode(), 1, start + len(data), len(content))
        data += content
    (folder / "queen.1c").write_bytes(b"QTBLCEM10\0\0\0\1" + struct.pack(">H", len(files)) + table + data)


def write_fillets(scripts, sounds, language, levels):
    """`levels` has, for each level, the role and the text of its lines by name."""
    for level, lines in levels.items():
        (scripts / level).mkdir(parents=True, exist_ok=True)
        (sounds / level / language).mkdir(parents=True, exist_ok=True)
        text = "".join(
            f'dialogId("{name}", "font_{role}", "English.")\ndialogStr("{said}")\n\n'
            for name, (role, said) in lines.items()
        )
        (scripts / level / f"dialogs_{language}.lua").write_text(text, encoding="utf-8")
        for name in lines:
            (sounds / level / language / f"{name}.ogg").write_bytes(sound_bytes(kind="OGG"))


def write_festvox(folder, lines):
    (folder / "etc").mkdir(parents=True)
    (folder / "wav").mkdir()
    text = "".join(f'( {name} "{said}" )\n' for name, said in lines.items())
    (folder / "etc" / "txt.done.data").write_text(text, encoding="utf-8")
    for name in lines:
        (folder / "wav" / f"{name}.wav").write_bytes(sound_bytes(2.0))


def write_stamp(folder, name, texts, seconds=1.0):
    """A stamp with its texts and recordings, by language."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["In English.", *(f"{language}.utf8={text}" for language, text in texts.items())]
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for index, language in enumerate(texts):
        pitch = 100 + 7 * len(name) + 10 * index + sum(name.encode())
        (folder / f"{name}_desc_{language}.ogg").write_bytes(sound_bytes(seconds, pitch, "OGG"))
