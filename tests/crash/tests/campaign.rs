//! The campaign, briefly, and what its judge says when something is wrong on purpose.
//!
//! `FOREBAY_CRASH_ROUNDS` sets the rounds, `FOREBAY_SEED` the plans.

use std::process::{Command, Output};

/// Enough for every named point to be asked for, whatever the machine does meanwhile.
const ROUNDS: &str = "200";

fn campaign(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay-crash"));
    command.arg("crash-campaign").args(args);
    if let Ok(seed) = std::env::var("FOREBAY_SEED") {
        command.args(["--seed", &seed]);
    }
    command.output().expect("it runs")
}

/// What it printed, and whether the contract held.
fn told(args: &[&str]) -> (String, bool) {
    let output = campaign(args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (text + &String::from_utf8_lossy(&output.stderr), output.status.success())
}

#[test]
fn the_contract_holds_wherever_the_process_is_killed() {
    let rounds = std::env::var("FOREBAY_CRASH_ROUNDS").unwrap_or(ROUNDS.into());
    let (text, held) = told(&["--rounds", &rounds]);
    println!("{text}");
    assert!(held);
}

#[test]
fn the_judge_notices_what_is_wrong() {
    // What damage costs depends on where the kills fall: records, or first the count of them.
    let cases: [(&str, &[&str]); 7] = [
        ("loses", &["lost: "]),
        ("swaps", &["disorder: "]),
        ("repeats", &[" duplicates, at most "]),
        ("invents", &["a ghost: "]),
        ("garbles", &[" arrived garbled"]),
        ("damage", &["lost: ", ", counted in the directory: "]),
        ("no-allowance", &["lost: "]),
    ];
    for (sabotage, words) in cases {
        let (text, held) = told(&["--rounds", "12", "--sabotage", sabotage]);
        let is_told = |l: &&str| l.starts_with("FAILED") && words.iter().any(|w| l.contains(w));
        let told = text.lines().find(is_told);
        println!("{sabotage}: {told:?}");
        assert!(!held && told.is_some(), "{sabotage} was not noticed: {text}");
    }
}
