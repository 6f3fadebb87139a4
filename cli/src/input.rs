//! Owns the reading of lines: any bytes, without a limit on memory being the input's choice.

use std::io::{self, BufRead};

/// What one line of input is.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// A line, without its newline, in the buffer.
    Good,
    /// A line of this many bytes, longer than the limit: its rest was skipped.
    TooLong(u64),
    /// The input is over.
    End,
}

/// Reads the next line into `line` (emptied first), at most `limit` bytes of it.
pub fn read_line(input: &mut impl BufRead, line: &mut Vec<u8>, limit: usize) -> io::Result<Line> {
    line.clear();
    let mut length = 0u64;
    loop {
        let buffer = match input.fill_buf() {
            Ok(buffer) => buffer,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        if buffer.is_empty() {
            // The last line may lack its newline; nothing at all is the end.
            return Ok(if length == 0 { Line::End } else { ended(length, limit) });
        }
        let newline = buffer.iter().position(|b| *b == b'\n');
        let part = &buffer[..newline.unwrap_or(buffer.len())];
        length += part.len() as u64;
        let room = limit.saturating_sub(line.len()).min(part.len());
        line.extend_from_slice(&part[..room]);
        let used = part.len() + usize::from(newline.is_some());
        input.consume(used);
        if newline.is_some() {
            return Ok(ended(length, limit));
        }
    }
}

fn ended(length: u64, limit: usize) -> Line {
    if length > limit as u64 { Line::TooLong(length) } else { Line::Good }
}

/// Splits a line at the first separator: key and value; without one the key is null.
pub fn split_key<'a>(line: &'a [u8], separator: Option<&[u8]>) -> (Option<&'a [u8]>, &'a [u8]) {
    let found = separator.and_then(|s| {
        line.windows(s.len()).position(|w| w == s).map(|at| (&line[..at], &line[at + s.len()..]))
    });
    match found {
        Some((key, value)) => (Some(key), value),
        None => (None, line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    fn lines(bytes: &[u8], limit: usize, buffer: usize) -> Vec<(Line, Vec<u8>)> {
        let mut input = BufReader::with_capacity(buffer, bytes);
        let mut all = Vec::new();
        let mut line = Vec::new();
        loop {
            match read_line(&mut input, &mut line, limit).unwrap() {
                Line::End => return all,
                kind => all.push((kind, line.clone())),
            }
        }
    }

    #[test]
    fn lines_are_what_lies_between_newlines() {
        for buffer in 1..9 {
            let good = |b: &[u8]| (Line::Good, b.to_vec());
            assert_eq!(lines(b"", 9, buffer), []);
            assert_eq!(lines(b"a\n\nbc", 9, buffer), [good(b"a"), good(b""), good(b"bc")]);
            assert_eq!(lines(b"\xff\x00\r\n", 9, buffer), [good(b"\xff\x00\r")]);
            let long = lines(b"abcd\nabc\nabcde", 3, buffer);
            assert_eq!(long[0], (Line::TooLong(4), b"abc".to_vec()));
            assert_eq!(long[1], good(b"abc"));
            assert_eq!(long[2].0, Line::TooLong(5));
        }
    }

    #[test]
    fn a_key_is_what_stands_before_the_first_separator() {
        assert_eq!(split_key(b"k:v:w", Some(b":")), (Some(&b"k"[..]), &b"v:w"[..]));
        assert_eq!(split_key(b":v", Some(b":")), (Some(&b""[..]), &b"v"[..]));
        assert_eq!(split_key(b"kv", Some(b":")), (None, &b"kv"[..]));
        assert_eq!(split_key(b"k::v", Some(b"::")), (Some(&b"k"[..]), &b"v"[..]));
        assert_eq!(split_key(b"k:v", None), (None, &b"k:v"[..]));
        assert_eq!(split_key(b"", Some(b"::")), (None, &b""[..]));
    }
}
