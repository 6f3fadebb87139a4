//! Owns what a proxy understands of Kafka's protocol: where messages begin, which question an answer
//! belongs to, and the lists of brokers and topics in a metadata answer.

use std::collections::HashMap;
use std::sync::Mutex;

/// The key of `Metadata`, and the first version of it with compact fields.
const METADATA: i16 = 3;
const METADATA_COMPACT: i16 = 9;
/// The code of a topic that a broker doesn't have.
const UNKNOWN_TOPIC: i16 = 3;

/// What is done to answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Filter {
    /// Answers to requests with this key never come.
    Swallow(i16),
    /// Metadata names no broker.
    NoBrokers,
    /// Metadata says of every topic that there is none.
    NoTopics,
}

/// One connection's questions, and what is done to their answers.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) filter: Filter,
    /// Key and version of each question by its number.
    asked: Mutex<HashMap<u32, (i16, i16)>>,
}

/// One direction's bytes until a message is whole.
#[derive(Debug, Default)]
pub(crate) struct Frames(Vec<u8>);

impl Frames {
    /// Takes what came, and calls `each` for every whole message, its length in front.
    fn take(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) {
        self.0.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(length) = u32_at(&self.0, at) {
            let end = at + 4 + length as usize;
            let Some(frame) = self.0.get(at..end) else { break };
            each(frame);
            at = end;
        }
        self.0.drain(..at);
    }
}

impl Wire {
    pub(crate) fn new(filter: Filter) -> Wire {
        Wire { filter, asked: Mutex::new(HashMap::new()) }
    }

    /// Notes the questions in what the client sent.
    pub(crate) fn asks(&self, frames: &mut Frames, bytes: &[u8]) {
        let mut asked = self.asked.lock().expect("no thread panics with it");
        frames.take(bytes, |frame| {
            if let (Some(key), Some(version), Some(number)) =
                (i16_at(frame, 4), i16_at(frame, 6), u32_at(frame, 8))
            {
                asked.insert(number, (key, version));
            }
        });
    }

    /// What of the broker's bytes goes on to the client, and how many answers were spoilt.
    pub(crate) fn answers(&self, frames: &mut Frames, bytes: &[u8]) -> (Vec<u8>, u64) {
        let mut asked = self.asked.lock().expect("no thread panics with it");
        let (mut passed, mut spoilt) = (Vec::new(), 0);
        frames.take(bytes, |frame| {
            let question = u32_at(frame, 4).and_then(|number| asked.remove(&number));
            let changed = match (self.filter, question) {
                (Filter::Swallow(key), Some((asked, _))) if asked == key => Some(Vec::new()),
                (Filter::NoBrokers, Some((METADATA, version))) => without_brokers(frame, version),
                (Filter::NoTopics, Some((METADATA, version))) => without_topics(frame, version),
                _ => None,
            };
            spoilt += u64::from(changed.is_some());
            passed.extend_from_slice(changed.as_deref().unwrap_or(frame));
        });
        (passed, spoilt)
    }
}

/// Where the list of brokers begins in a metadata answer: behind length, number, tags of the header
/// and throttle time.
fn brokers_at(version: i16) -> usize {
    8 + usize::from(version >= METADATA_COMPACT) + if version >= 3 { 4 } else { 0 }
}

/// The same metadata answer with an empty list of brokers; `None` if it can't be read.
fn without_brokers(frame: &[u8], version: i16) -> Option<Vec<u8>> {
    let compact = version >= METADATA_COMPACT;
    let list = brokers_at(version);
    let mut at = list;
    skip_brokers(frame, &mut at, version)?;
    let mut changed = frame.get(..list)?.to_vec();
    if compact {
        changed.push(1);
    } else {
        changed.extend_from_slice(&0u32.to_be_bytes());
    }
    changed.extend_from_slice(frame.get(at..)?);
    with_its_length(changed)
}

/// The same metadata answer in which every topic has `UNKNOWN_TOPIC_OR_PARTITION` and no
/// partitions; `None` if it can't be read.
fn without_topics(frame: &[u8], version: i16) -> Option<Vec<u8>> {
    let compact = version >= METADATA_COMPACT;
    let mut at = brokers_at(version);
    skip_brokers(frame, &mut at, version)?;
    if version >= 2 {
        skip_text(frame, &mut at, compact)?;
    }
    if version >= 1 {
        // The controller.
        at += 4;
    }
    let topics = count(frame, &mut at, compact)?;
    let mut changed = frame.get(..at)?.to_vec();
    for _ in 0..topics {
        changed.extend_from_slice(&UNKNOWN_TOPIC.to_be_bytes());
        at += 2;
        let head = at;
        skip_text(frame, &mut at, compact)?;
        // The topic's id, and whether it is internal.
        at += if version >= 10 { 16 } else { 0 } + usize::from(version >= 1);
        changed.extend_from_slice(frame.get(head..at)?);
        if compact {
            changed.push(1);
        } else {
            changed.extend_from_slice(&0u32.to_be_bytes());
        }
        for _ in 0..count(frame, &mut at, compact)? {
            // Code, number, leader, leader epoch; replicas, those in sync, those offline.
            at += 10 + if version >= 7 { 4 } else { 0 };
            for _ in 0..if version >= 5 { 3 } else { 2 } {
                at += 4 * count(frame, &mut at, compact)?;
            }
            skip_tags(frame, &mut at, compact)?;
        }
        let rest = at;
        at += if version >= 8 { 4 } else { 0 };
        skip_tags(frame, &mut at, compact)?;
        changed.extend_from_slice(frame.get(rest..at)?);
    }
    changed.extend_from_slice(frame.get(at..)?);
    with_its_length(changed)
}

fn skip_brokers(frame: &[u8], at: &mut usize, version: i16) -> Option<()> {
    let compact = version >= METADATA_COMPACT;
    for _ in 0..count(frame, at, compact)? {
        *at += 4;
        skip_text(frame, at, compact)?;
        *at += 4;
        if version >= 1 {
            skip_text(frame, at, compact)?;
        }
        skip_tags(frame, at, compact)?;
    }
    Some(())
}

fn skip_tags(frame: &[u8], at: &mut usize, compact: bool) -> Option<()> {
    if compact {
        for _ in 0..uvarint(frame, at)? {
            uvarint(frame, at)?;
            *at += uvarint(frame, at)?;
        }
    }
    Some(())
}

/// The number of items of a list; one that is null has none.
fn count(frame: &[u8], at: &mut usize, compact: bool) -> Option<usize> {
    if compact {
        return Some(uvarint(frame, at)?.saturating_sub(1));
    }
    let count = u32_at(frame, *at)?;
    *at += 4;
    Some(if count == u32::MAX { 0 } else { count as usize })
}

fn with_its_length(mut frame: Vec<u8>) -> Option<Vec<u8>> {
    let length = u32::try_from(frame.len() - 4).ok()?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    Some(frame)
}

fn skip_text(frame: &[u8], at: &mut usize, compact: bool) -> Option<()> {
    let bytes = if compact {
        uvarint(frame, at)?.saturating_sub(1)
    } else {
        let bytes = i16_at(frame, *at)?;
        *at += 2;
        usize::try_from(bytes).unwrap_or(0)
    };
    *at += bytes;
    Some(())
}

fn uvarint(frame: &[u8], at: &mut usize) -> Option<usize> {
    let mut value = 0usize;
    for shift in (0..35).step_by(7) {
        let byte = *frame.get(*at)?;
        *at += 1;
        value |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn i16_at(bytes: &[u8], at: usize) -> Option<i16> {
    bytes.get(at..at + 2)?.try_into().ok().map(i16::from_be_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message with this body.
    fn frame(body: &[u8]) -> Vec<u8> {
        [&(body.len() as u32).to_be_bytes(), body].concat()
    }

    #[test]
    fn an_answer_is_known_by_its_question_however_the_bytes_are_cut() {
        let wire = Wire::new(Filter::Swallow(22));
        let (mut up, mut down) = (Frames::default(), Frames::default());
        let asked = [frame(&[0, 22, 0, 1, 0, 0, 0, 7]), frame(&[0, 3, 0, 1, 0, 0, 0, 8])].concat();
        asked.chunks(3).for_each(|bytes| wire.asks(&mut up, bytes));
        let answers = [frame(&[0, 0, 0, 7, 1]), frame(&[0, 0, 0, 8, 2])].concat();
        let (mut passed, mut spoilt) = (Vec::new(), 0);
        for bytes in answers.chunks(5) {
            let (more, count) = wire.answers(&mut down, bytes);
            passed.extend(more);
            spoilt += count;
        }
        assert_eq!((passed, spoilt), (frame(&[0, 0, 0, 8, 2]), 1));
    }

    #[test]
    fn metadata_loses_its_brokers_and_nothing_else() {
        let throttle = [0, 0, 0, 0];
        // One broker: id, host, port, rack, tags; then the rest.
        let broker = [&[0, 0, 0, 1][..], &[2, b'h'], &[0, 0, 0, 9], &[0], &[0]].concat();
        let body = |brokers: &[u8]| {
            frame(&[&[0, 0, 0, 5][..], &[0], &throttle, brokers, b"rest"].concat())
        };
        let whole = body(&[&[2][..], &broker].concat());
        assert_eq!(without_brokers(&whole, 12), Some(body(&[1])));
        assert_eq!(without_brokers(&whole[..20], 12), None, "cut short");
        let old = |brokers: &[u8]| frame(&[&[0, 0, 0, 5][..], brokers, b"rest"].concat());
        let whole = old(&[&[0, 0, 0, 1, 0, 0, 0, 1][..], &[0, 1, b'h'], &[0, 0, 0, 9]].concat());
        assert_eq!(without_brokers(&whole, 0), Some(old(&[0, 0, 0, 0])));
    }

    #[test]
    fn metadata_loses_its_topics_and_nothing_else() {
        let broker = [&[0, 0, 0, 1][..], &[2, b'h'], &[0, 0, 0, 9], &[0], &[0]].concat();
        // Code, name, id, internal; partitions; operations, tags.
        let topic = |code: u8, partitions: &[u8]| {
            [&[0, code, 2, b't'][..], &[7; 16], &[0], partitions, &[8; 4], &[0]].concat()
        };
        // Code, number, leader, epoch; two replicas, one in sync, none offline; tags.
        let partition =
            [&[6; 14][..], &[3, 0, 0, 0, 1, 0, 0, 0, 2], &[2, 0, 0, 0, 1], &[1], &[0]].concat();
        let body = |topics: &[u8]| {
            let head = [&[0, 0, 0, 5][..], &[0], &[0, 0, 0, 0], &[2], &broker];
            let cluster = [&[2, b'c'][..], &[0, 0, 0, 1]];
            frame(&[head.concat(), cluster.concat(), topics.to_vec(), b"rest".to_vec()].concat())
        };
        let two = [&[3][..], &partition, &partition].concat();
        let whole = body(&[&[3][..], &topic(0, &two), &topic(5, &[1])].concat());
        let wanted = body(&[&[3][..], &topic(3, &[1]), &topic(3, &[1])].concat());
        assert_eq!(without_topics(&whole, 12), Some(wanted));
        assert_eq!(without_topics(&whole[..60], 12), None, "cut short");
        let old = |topics: &[u8]| frame(&[&[0, 0, 0, 5, 0, 0, 0, 0][..], topics, b"rest"].concat());
        let partition = [&[6; 10][..], &[0, 0, 0, 1, 0, 0, 0, 2], &[0, 0, 0, 0]].concat();
        let whole = old(&[&[0, 0, 0, 1, 0, 0, 0, 1, b't', 0, 0, 0, 1][..], &partition].concat());
        let wanted = old(&[0, 0, 0, 1, 0, 3, 0, 1, b't', 0, 0, 0, 0]);
        assert_eq!(without_topics(&whole, 0), Some(wanted));
    }
}
