//! (room: sequence)
