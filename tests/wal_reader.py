#!/usr/bin/env python3
"""A second reader of Forebay's log, written from the byte tables in DESIGN.md section 5 alone.

    wal_reader.py PATH...

PATH is a segment or a log's directory. Prints one JSON object a line: each record, and each range
of bytes that is no frame. Reads only, takes no lock, needs the standard library only. It shares no
code with the first reader, so that the two check each other (tests/second_reader.rs).
"""

import json
import os
import re
import struct
import sys
import zlib

FORMAT_VERSION = 1
HEADER_AREA = 1024
FRAME_HEADER = 56
RECORD, TOPIC, SEAL, SET_ASIDE, VOID = 1, 2, 3, 4, 5
TOPICS_MAX = 65536
NULL = 0xFFFFFFFF
U64_MAX = 2**64 - 1

SEGMENT_HEADER = struct.Struct("<8sIIQII B3xI QQQqQ 44xI")
FRAME = struct.Struct("<IIQQqBBHIiIII")
assert SEGMENT_HEADER.size == 128 and FRAME.size == FRAME_HEADER


def crc32(seed, *parts):
    crc = seed
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


class Segment:
    """A segment's header; `None` from `read` where no copy of it is good."""

    def __init__(self, fields):
        (_, _, _, self.number, self.salt, self.log_id, self.kind, self.frame_bytes_max,
         self.directory_id, self.base_lsn, self.first_frame, self.created, self.file_bytes,
         _) = fields

    @classmethod
    def read(cls, data):
        for at in (0, 512):
            raw = data[at:at + 128]
            if len(raw) < 128:
                continue
            fields = SEGMENT_HEADER.unpack(raw)
            magic, version, header_len, crc = fields[0], fields[1], fields[2], fields[-1]
            if (magic == b"FOREBAYW" and version == FORMAT_VERSION and header_len == HEADER_AREA
                    and crc == crc32(0, raw[:124]) and fields[6] in (0, 1)):
                return cls(fields)
        return None


class Frame:
    def __init__(self, data, at):
        (self.length, self.crc, self.lsn, self.number, self.timestamp_ms, self.kind, self.flags,
         self.prefix_len, self.topic, self.partition, self.headers_len, self.key_len,
         self.value_len) = FRAME.unpack_from(data, at)

    def agrees(self):
        """Whether the fields agree with each other."""
        if not RECORD <= self.kind <= VOID or self.flags & ~3:
            return False
        if self.flags & 1 and self.key_len or self.flags & 2 and self.value_len:
            return False
        if self.prefix_len < 12 if self.kind == SET_ASIDE else self.prefix_len:
            return False
        parts = self.prefix_len + self.headers_len + self.key_len + self.value_len
        if self.kind == VOID:
            return parts == 0 and self.length >= FRAME_HEADER
        return self.length == FRAME_HEADER + parts

    def stride(self):
        return (self.length + 7) // 8 * 8


class Walk:
    """Yields frames and bad ranges of one segment."""

    def __init__(self, data, segment):
        self.data, self.segment = data, segment
        self.due = segment.first_frame
        self.lsn_min = segment.base_lsn
        self.topics = {}

    def good(self, at, gap_from):
        """A whole good frame at `at` that may stand behind a gap from `gap_from`, or None."""
        data, segment = self.data, self.segment
        if at + FRAME_HEADER > len(data) or data[at:at + 8] == bytes(8):
            return None
        frame = Frame(data, at)
        if not frame.agrees() or at + frame.length > len(data):
            return None
        is_record = frame.kind in (RECORD, SET_ASIDE)
        if is_record and frame.length > segment.frame_bytes_max:
            return None
        if not 0 <= frame.number - self.due <= (at - gap_from) // FRAME_HEADER:
            return None
        if frame.number == U64_MAX:
            return None
        if frame.kind == RECORD:
            if segment.kind != 0 or not self.lsn_min <= frame.lsn < U64_MAX:
                return None
        if frame.kind == SET_ASIDE and segment.kind != 1:
            return None
        if frame.kind == TOPIC and frame.topic >= TOPICS_MAX:
            return None
        end = at + (FRAME_HEADER if frame.kind == VOID else frame.length)
        covered = crc32(segment.salt, data[at:at + 4], data[at + 8:end])
        return frame if covered == frame.crc else None

    def next_set(self, at):
        """The first position at or behind `at` whose 8 bytes aren't all zero."""
        while at < len(self.data):
            block = self.data[at:at + 65536]
            if block.count(0) < len(block):
                first = next(i for i, byte in enumerate(block) if byte)
                return at + first // 8 * 8
            at += 65536
        return None

    def items(self):
        at = HEADER_AREA
        while True:
            frame = self.good(at, at)
            if frame is None:
                found, pos, last_set = None, at, at
                while (pos := self.next_set(pos)) is not None:
                    if pos > at and (frame := self.good(pos, at)):
                        found = pos
                        break
                    pos = last_set = pos + 8
                if found is None:
                    if last_set > at:
                        yield ("bad", at, min(last_set, len(self.data)), None)
                    return
                yield ("bad", at, found, frame.number - self.due)
                self.due = frame.number
                at = found
            end = min(at + frame.stride(), len(self.data))
            if frame.kind in (RECORD, SET_ASIDE):
                self.due = frame.number + 1
                if self.segment.kind == 0:
                    self.lsn_min = frame.lsn + 1
                if frame.topic in self.topics:
                    yield ("record", at, frame)
                else:
                    yield ("bad", at, end, 1)
            elif frame.kind == TOPIC:
                name = self.data[at + FRAME_HEADER:at + frame.length]
                try:
                    self.topics[frame.topic] = name.decode()
                except UnicodeDecodeError:
                    pass
            elif frame.kind == SEAL:
                return
            at = end

    def parts(self, at, frame):
        """Set-aside note, headers, key and value of a record."""
        pos = at + FRAME_HEADER

        def take(n):
            nonlocal pos
            pos += n
            return self.data[pos - n:pos]

        prefix, note = take(frame.prefix_len), None
        if frame.kind == SET_ASIDE:
            unix_ms, code = struct.unpack_from("<qi", prefix)
            note = {"unix_ms": unix_ms, "code": code, "reason": prefix[12:].decode()}
        raw, headers = take(frame.headers_len), []
        while raw:
            name_len, value_len = struct.unpack_from("<HI", raw)
            name, raw = raw[6:6 + name_len].decode(), raw[6 + name_len:]
            if value_len == NULL:
                headers.append([name, None])
            else:
                headers.append([name, raw[:value_len].hex()])
                raw = raw[value_len:]
        key, value = take(frame.key_len), take(frame.value_len)
        key = None if frame.flags & 1 else key.hex()
        value = None if frame.flags & 2 else value.hex()
        return note, headers, key, value


def show(what):
    print(json.dumps(what, ensure_ascii=False))


def read_segment(path):
    with open(path, "rb") as file:
        data = file.read()
    if not data.strip(b"\0"):
        return  # Prepared, and never used.
    segment = Segment.read(data)
    if segment is None:
        print(f"{path}: no good header of version {FORMAT_VERSION}", file=sys.stderr)
        return
    walk = Walk(data, segment)
    for item in walk.items():
        if item[0] == "bad":
            show({"bad": list(item[1:3]), "records_lost": item[3]})
            continue
        _, at, frame = item
        note, headers, key, value = walk.parts(at, frame)
        show({
            "lsn": frame.lsn,
            "topic": walk.topics[frame.topic],
            "partition": frame.partition if frame.partition >= 0 else None,
            "timestamp_ms": frame.timestamp_ms,
            "key": key,
            "value": value,
            "headers": headers,
            "set_aside": note,
        })


def segments_of(path):
    if not os.path.isdir(path):
        return [path]
    found = []
    for sub in ("", "set-aside"):
        directory = os.path.join(path, sub)
        if os.path.isdir(directory):
            names = sorted(n for n in os.listdir(directory) if re.fullmatch(r"[0-9a-f]{16}\.wal", n))
            found += [os.path.join(directory, name) for name in names]
    return found


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for path in sys.argv[1:]:
        for segment in segments_of(path):
            read_segment(segment)


if __name__ == "__main__":
    main()
