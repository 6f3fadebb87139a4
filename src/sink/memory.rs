//! A sink in memory, for tests.
/// A sink in memory.
#[derive(Debug, Default)]
pub struct MemorySink;
