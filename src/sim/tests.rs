//! Owns the test run of the simulator: many seeds, and how to run one of them again.

use super::schedule::{Coverage, Schedule};

const SCHEDULES: u64 = 100_000;

fn number_from(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

fn run(seed: u64, coverage: &mut Coverage) {
    let again = format!(
        "FOREBAY_SIM_SEED={seed} cargo test --no-default-features --lib sim:: -- --nocapture"
    );
    let run = std::panic::AssertUnwindSafe(|| Schedule::run(seed, coverage));
    match std::panic::catch_unwind(run) {
        Ok(Ok(())) => {}
        Ok(Err(violation)) => panic!("seed {seed}: {violation}\nagain: {again}"),
        Err(panic) => {
            println!("seed {seed} panicked\nagain: {again}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn the_contract_holds_over_many_schedules() {
    let mut coverage = Coverage::default();
    if let Some(seed) = number_from("FOREBAY_SIM_SEED") {
        run(seed, &mut coverage);
        println!("{coverage:#?}");
        return;
    }
    let schedules = number_from("FOREBAY_SIM_SCHEDULES").unwrap_or(SCHEDULES);
    let started = std::time::Instant::now();
    let first = number_from("FOREBAY_SIM_FIRST").unwrap_or(1);
    for seed in first..first + schedules {
        run(seed, &mut coverage);
    }
    println!("{coverage:#?}\n{:?}", started.elapsed());
    if schedules >= SCHEDULES {
        for (name, count) in coverage.each() {
            assert!(count > 0, "{name} never happened: this run proves too little");
        }
    }
}
