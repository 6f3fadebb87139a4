//! Owns the test run of the simulator: many seeds, and how to run one of them again.

use super::schedule::{Coverage, Schedule};

const SCHEDULES: u64 = 100_000;
/// The run ends after so many schedules that failed.
const FAILURES_MAX: usize = 10;

fn number_from(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

/// What went wrong with `seed`, and how to see it again.
fn run(seed: u64, coverage: &mut Coverage, aloud: bool) -> Option<String> {
    let run = std::panic::AssertUnwindSafe(|| Schedule::run(seed, coverage, aloud));
    let what = match std::panic::catch_unwind(run) {
        Ok(Ok(())) => return None,
        Ok(Err(violation)) => violation,
        Err(_) => "a panic".to_owned(),
    };
    Some(format!(
        "seed {seed}: {what}\n  again: FOREBAY_SIM_SEED={seed} cargo test --no-default-features \
         --lib sim:: -- --nocapture"
    ))
}

#[test]
fn the_contract_holds_over_many_schedules() {
    let mut coverage = Coverage::default();
    if let Some(seed) = number_from("FOREBAY_SIM_SEED") {
        let failed = run(seed, &mut coverage, true);
        println!("{coverage:#?}");
        assert_eq!(failed, None);
        return;
    }
    let schedules = number_from("FOREBAY_SIM_SCHEDULES").unwrap_or(SCHEDULES);
    let started = std::time::Instant::now();
    let first = number_from("FOREBAY_SIM_FIRST").unwrap_or(1);
    let failed = (first..first + schedules).filter_map(|seed| run(seed, &mut coverage, false));
    let failed: Vec<String> = failed.take(FAILURES_MAX).collect();
    println!("{coverage:#?}\n{:?}", started.elapsed());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    if schedules >= SCHEDULES {
        for (name, count) in coverage.each() {
            assert!(count > 0, "{name} never happened: this run proves too little");
        }
    }
}
