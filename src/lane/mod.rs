//! (room: lane)
