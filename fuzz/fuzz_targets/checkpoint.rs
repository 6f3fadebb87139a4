//! The codec of checkpoint slots, manifests, seals and seal locators: nothing panics on any
//! bytes, also behind a checksum that was made right; what decodes encodes to what decodes the
//! same; one flipped bit is always seen.
#![no_main]

use arbitrary::Arbitrary;
use forebay::record::Lsn;
use forebay::wal::{CheckpointData, Locator, Manifest, Seal, Slot, TopicBooks};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    SlotBytes { bytes: &'a [u8], repair: bool },
    Slot { words: [u64; 7], topics: Vec<(&'a str, [u64; 3])>, bit: u32 },
    ManifestBytes { bytes: &'a [u8], repair: bool },
    Manifest { words: [u64; 2], segments: Vec<(u64, u64)>, bit: u32 },
    SealBytes(&'a [u8]),
    Seal { words: [u64; 4], topics: Vec<(&'a str, u64)> },
    LocatorBytes { bytes: &'a [u8], salt: u32 },
    Locator { words: [u64; 4], salt: u32, bit: u32 },
}

/// Magic, version, length and checksum made right, so that what lies behind them is reached.
fn repaired(bytes: &[u8], magic: &[u8; 8]) -> Vec<u8> {
    let mut b = bytes.to_vec();
    b.resize(b.len().max(88), 0);
    b[..8].copy_from_slice(magic);
    b[8..12].copy_from_slice(&1u32.to_le_bytes());
    let len = b.len() as u32;
    b[12..16].copy_from_slice(&len.to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&b[..16]);
    crc.update(&b[20..]);
    b[16..20].copy_from_slice(&crc.finalize().to_le_bytes());
    b
}

fn slot(bytes: &[u8]) {
    let Some(slot) = Slot::decode(bytes) else { return };
    assert_eq!(Slot::decode(&slot.encode()), Some(slot));
}

fn manifest(bytes: &[u8]) {
    let Some(manifest) = Manifest::decode(bytes) else { return };
    assert_eq!(Manifest::decode(&manifest.encode()), Some(manifest));
}

/// Flips one bit of the covered bytes.
fn flip(bytes: &mut [u8], covered: usize, bit: u32) {
    let bit = bit as usize % (covered * 8);
    bytes[bit / 8] ^= 1 << (bit % 8);
}

fuzz_target!(|input: Input<'_>| {
    match input {
        Input::SlotBytes { bytes, repair: false } => slot(bytes),
        Input::SlotBytes { bytes, repair: true } => slot(&repaired(bytes, b"FOREBAYC")),
        Input::Slot { words, topics, bit } => {
            let books = |(name, n): &(&str, [u64; 3])| TopicBooks {
                name: name.to_string(),
                delivered: n[0],
                set_aside: n[1],
                dropped: n[2],
                ..TopicBooks::default()
            };
            let data = CheckpointData {
                watermark: Lsn(words[2] >> 1),
                next_lsn: Lsn(words[3] >> 1),
                accepted: words[4],
                delivered: words[5],
                unsafe_records: words[6],
                topics: topics.iter().filter(|(name, _)| name.len() <= 65_535).map(books).collect(),
            };
            let slot = Slot { directory_id: words[0], generation: words[1], data };
            let mut bytes = slot.encode();
            assert_eq!(bytes.len() % 4096, 0);
            assert_eq!(Slot::decode(&bytes), Some(slot));
            let covered = u32::from_le_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]) as usize;
            // The four bytes of the length itself may say anything, so they get no bit here.
            flip(&mut bytes[16..], covered - 16, bit);
            assert_eq!(Slot::decode(&bytes), None);
        }
        Input::ManifestBytes { bytes, repair: false } => manifest(bytes),
        Input::ManifestBytes { bytes, repair: true } => manifest(&repaired(bytes, b"FOREBAYM")),
        Input::Manifest { words, segments, bit } => {
            let manifest = Manifest { directory_id: words[0], next_number: words[1], segments };
            let mut bytes = manifest.encode();
            assert_eq!(Manifest::decode(&bytes), Some(manifest));
            let covered = bytes.len();
            flip(&mut bytes, covered, bit);
            assert_eq!(Manifest::decode(&bytes), None);
        }
        Input::SealBytes(bytes) => {
            let Some(seal) = Seal::decode(bytes) else { return };
            assert_eq!(Seal::decode(&seal.encode()), Some(seal));
        }
        Input::Seal { words, topics } => {
            let seal = Seal {
                records: words[0] >> 1,
                first_lsn: words[1] >> 1,
                last_lsn: words[2] >> 1,
                next_frame: words[3] >> 1,
                topics: topics
                    .into_iter()
                    .filter(|(name, _)| name.len() <= 65_535)
                    .map(|(name, n)| (name.into(), n >> 1))
                    .collect(),
            };
            assert_eq!(Seal::decode(&seal.encode()), Some(seal));
        }
        Input::LocatorBytes { bytes, salt } => {
            let Some(locator) = Locator::find(bytes, salt) else { return };
            let mut area = vec![0; 1024];
            area[768..808].copy_from_slice(&locator.encode(salt));
            assert_eq!(Locator::find(&area, salt), Some(locator));
        }
        Input::Locator { words, salt, bit } => {
            let locator = Locator {
                offset: words[0].max(1024),
                length: words[1].max(1),
                next_frame: words[2] >> 1,
                last_lsn: words[3] >> 1,
            };
            let bytes = locator.encode(salt);
            let mut area = vec![0; 1024];
            area[256..296].copy_from_slice(&bytes);
            area[768..808].copy_from_slice(&bytes);
            assert_eq!(Locator::find(&area, salt), Some(locator));
            flip(&mut area, 1024, bit);
            assert_eq!(Locator::find(&area, salt), Some(locator), "the copy holds");
        }
    }
});
