//! The codec of segment headers, frames, notes and record headers: nothing panics, what decodes
//! encodes to what decodes the same, and what was encoded comes back.
#![no_main]

use arbitrary::Arbitrary;
use forebay::record::{HEADERS_MAX, Header, Headers, RecordView, Shape, TopicId};
use forebay::wal::format::{FRAME_HEADER_BYTES, HEADER_AREA_BYTES};
use forebay::wal::{
    FrameHeader, FrameKind, HeaderVerdict, SegmentHeader, SegmentKind, SetAsideNote,
};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    SegmentBytes { bytes: &'a [u8], repair: bool },
    Segment { words: [u64; 5], halves: [u32; 3], aside: bool, at: u16, bit: u8 },
    FrameBytes { bytes: &'a [u8], salt: u32 },
    Frame(Frame<'a>),
    Note { reason: &'a str, code: i32, unix_ms: i64 },
    NoteBytes(&'a [u8]),
    HeaderBytes(&'a [u8]),
    Headers(Vec<(&'a str, Option<&'a [u8]>)>),
}

#[derive(Arbitrary, Debug)]
struct Frame<'a> {
    kind: u8,
    salt: u32,
    lsn: u64,
    number: u64,
    timestamp_ms: i64,
    topic: u32,
    partition: i32,
    headers: &'a [u8],
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    prefix: &'a [u8],
    flip: u32,
}

/// A file's first bytes with both header checksums made right.
fn repaired(bytes: &[u8]) -> Vec<u8> {
    let mut area = vec![0; HEADER_AREA_BYTES as usize];
    for at in [0, 512] {
        let n = bytes.len().min(124);
        area[at..at + n].copy_from_slice(&bytes[..n]);
        area[at..at + 8].copy_from_slice(b"FOREBAYW");
        let crc = crc32fast::hash(&area[at..at + 124]);
        area[at + 124..at + 128].copy_from_slice(&crc.to_le_bytes());
    }
    area
}

fn segment(area: &[u8]) {
    if let HeaderVerdict::Good(header) = SegmentHeader::judge(area) {
        assert_eq!(SegmentHeader::judge(&header.encode()), HeaderVerdict::Good(header));
    }
}

fn frame(input: &Frame<'_>) {
    let kind = match input.kind % 5 {
        0 => FrameKind::Record,
        1 => FrameKind::Topic,
        2 => FrameKind::Seal,
        3 => FrameKind::SetAside,
        _ => FrameKind::Void,
    };
    let prefix = if kind == FrameKind::SetAside { input.prefix } else { &[] };
    if prefix.len() > usize::from(u16::MAX) || (kind == FrameKind::SetAside && prefix.len() < 12) {
        return;
    }
    let is_void = kind == FrameKind::Void;
    let shape = if is_void {
        Shape { headers_len: 0, key_len: None, value_len: Some(0) }
    } else {
        Shape {
            headers_len: input.headers.len() as u32,
            key_len: input.key.map(|k| k.len() as u32),
            value_len: input.value.map(|v| v.len() as u32),
        }
    };
    let mut body = input.headers.to_vec();
    body.extend(input.key.unwrap_or(&[]));
    body.extend(input.value.unwrap_or(&[]));
    let header = FrameHeader {
        length: (FRAME_HEADER_BYTES + prefix.len() + body.len()) as u32,
        crc: 0,
        lsn: input.lsn >> 1,
        frame_number: input.number >> 1,
        timestamp_ms: input.timestamp_ms,
        kind,
        prefix_len: prefix.len() as u16,
        topic: input.topic,
        partition: input.partition,
        shape,
    };
    // A void's bytes behind its header are what a failed append left: no checksum covers them.
    let encoded = if is_void {
        header.encode(input.salt, &[], &[])
    } else {
        header.encode(input.salt, prefix, &body)
    };
    let mut bytes = encoded.to_vec();
    bytes.extend(prefix);
    bytes.extend(&body);
    let back = FrameHeader::decode(&bytes).expect("what was encoded decodes");
    assert_eq!(FrameHeader { crc: 0, ..back }, header);
    assert!(back.crc_holds(input.salt, &bytes));
    if !is_void {
        let view = RecordView {
            topic: TopicId(back.topic),
            partition: back.partition,
            timestamp_ms: back.timestamp_ms,
            shape: back.shape,
            body: &bytes[FRAME_HEADER_BYTES + prefix.len()..],
        };
        assert_eq!((view.key(), view.value()), (input.key, input.value));
        let _ = view.headers().count();
    }
    // One flipped bit of what the checksum covers is always seen.
    let covered = if is_void { FRAME_HEADER_BYTES } else { bytes.len() };
    let bit = input.flip as usize % (covered * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
    if let Some(bad) = FrameHeader::decode(&bytes)
        && bad.length as usize == bytes.len()
    {
        assert!(!bad.crc_holds(input.salt, &bytes), "bit {bit} of {input:?}");
    }
}

fuzz_target!(|input: Input<'_>| {
    match input {
        Input::SegmentBytes { bytes, repair: false } => segment(bytes),
        Input::SegmentBytes { bytes, repair: true } => segment(&repaired(bytes)),
        Input::Segment { words, halves, aside, at, bit } => {
            let header = SegmentHeader {
                number: words[0],
                salt: halves[0],
                log_id: halves[1],
                kind: if aside { SegmentKind::SetAside } else { SegmentKind::Main },
                frame_bytes_max: halves[2],
                directory_id: words[1],
                base_lsn: words[2] >> 1,
                first_frame: words[3] >> 1,
                created_unix_ms: words[4] as i64,
                file_bytes: words[4],
            };
            let mut area = vec![0; HEADER_AREA_BYTES as usize];
            let bytes = header.encode();
            area[..128].copy_from_slice(&bytes);
            area[512..640].copy_from_slice(&bytes);
            assert_eq!(SegmentHeader::judge(&area), HeaderVerdict::Good(header));
            let at = usize::from(at) % area.len();
            area[at] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::judge(&area), HeaderVerdict::Good(header), "the copy holds");
        }
        Input::FrameBytes { bytes, salt } => {
            let Some(header) = FrameHeader::decode(bytes) else { return };
            let again = FrameHeader::decode(&header.encode(salt, &[], &[])).expect("it decoded");
            assert_eq!(FrameHeader { crc: header.crc, ..again }, header);
            if let Some(frame) = bytes.get(..header.length as usize) {
                let _ = header.crc_holds(salt, frame);
            }
        }
        Input::Frame(input) => frame(&input),
        Input::Note { reason, code, unix_ms } => {
            let encoded = SetAsideNote { reason, code, unix_ms }.encode();
            let back = SetAsideNote::decode(&encoded).expect("what was encoded decodes");
            assert_eq!((back.code, back.unix_ms), (code, unix_ms));
            assert!(reason.starts_with(back.reason));
            assert!(back.reason.len() == reason.len() || back.reason.len() > 1020);
        }
        Input::NoteBytes(bytes) => {
            if let Some(note) = SetAsideNote::decode(bytes)
                && note.reason.len() <= 1024
            {
                assert_eq!(note.encode(), bytes);
            }
        }
        Input::HeaderBytes(bytes) => {
            // What comes of arbitrary bytes encodes to a prefix of them.
            let mut at = 0;
            for header in Headers::new(bytes) {
                let mut to = vec![0; header.encoded_len()];
                header.encode(&mut to);
                assert_eq!(to, bytes[at..at + to.len()]);
                at += to.len();
            }
        }
        Input::Headers(headers) => {
            let valid = |h: &(&str, Option<&[u8]>)| Header { name: h.0, value: h.1 }.is_valid();
            let headers: Vec<_> = headers.into_iter().filter(valid).take(HEADERS_MAX).collect();
            let mut bytes = Vec::new();
            for (name, value) in &headers {
                let header = Header { name, value: *value };
                let at = bytes.len();
                bytes.resize(at + header.encoded_len(), 0);
                assert_eq!(header.encode(&mut bytes[at..]), header.encoded_len());
            }
            let back: Vec<_> = Headers::new(&bytes).map(|h| (h.name, h.value)).collect();
            assert_eq!(back, headers);
        }
    }
});
