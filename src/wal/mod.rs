//! (room: wal)
