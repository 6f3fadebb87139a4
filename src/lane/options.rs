//! Owns the size of the lanes and what is allowed.

use super::word::{LANE_UNITS_MAX, UNIT_BYTES};
use std::io;

/// How many lanes, and how large each is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LaneOptions {
    /// Number of lanes: a power of two, at most 1,024.
    pub lanes: usize,
    /// Bytes of each lane's arena: a power of two, at most 4 GiB.
    pub lane_bytes: usize,
    /// Records that a lane holds at most: a power of two, at most 2^28.
    pub lane_slots: usize,
    /// Longest body (headers, key and value together): at most an eighth of `lane_bytes`.
    pub record_bytes_max: usize,
}

/// Most lanes.
const LANES_MAX: usize = 1024;
/// A lane is at least this many times the longest record.
const RECORDS_PER_LANE_MIN: usize = 8;

impl LaneOptions {
    pub(super) fn check(&self) -> io::Result<()> {
        power_of_two("lanes", self.lanes, 1, LANES_MAX)?;
        power_of_two("lane_bytes", self.lane_bytes, UNIT_BYTES, LANE_UNITS_MAX * UNIT_BYTES)?;
        power_of_two("lane_slots", self.lane_slots, 1, LANE_UNITS_MAX)?;
        if self.record_bytes_max > self.lane_bytes / RECORDS_PER_LANE_MIN {
            return Err(invalid(format!(
                "record_bytes_max = {}: at most an eighth of lane_bytes, {}; lane_bytes must be at least {}",
                self.record_bytes_max,
                self.lane_bytes / RECORDS_PER_LANE_MIN,
                self.record_bytes_max.saturating_mul(RECORDS_PER_LANE_MIN),
            )));
        }
        Ok(())
    }
}

fn power_of_two(name: &str, value: usize, min: usize, max: usize) -> io::Result<()> {
    if value.is_power_of_two() && (min..=max).contains(&value) {
        return Ok(());
    }
    Err(invalid(format!("{name} = {value}: a power of two from {min} to {max}")))
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}
