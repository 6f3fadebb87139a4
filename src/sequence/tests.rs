//! Owns the tests of the sequence: rule by rule, then every interleaving at small sizes.

mod explorer;
mod world;
