//! Owns what tests see of a log's directory: its files, and no more than their names and bytes.

use std::path::{Path, PathBuf};

/// The main segments that hold something, oldest first.
///
/// # Panics
/// When the directory or a file in it can't be read.
#[must_use]
pub fn segments(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .flatten()
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "wal"))
        .filter(|p| std::fs::read(p).unwrap().iter().any(|b| *b != 0))
        .collect();
    all.sort();
    all
}

/// Every file under `dir` with its bytes.
///
/// # Panics
/// When the directory or a file in it can't be read.
#[must_use]
pub fn everything(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            all.extend(everything(&path));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            all.push((path, bytes));
        }
    }
    all.sort();
    all
}
