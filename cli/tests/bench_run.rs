//! `forebay bench`: the object, the page, and that nothing is lost by being measured.

use forebay_testkit::process::{Ended, Running};
use forebay_testkit::{heavy, say};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

fn bench(args: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.arg("bench").args(args);
    Running::start(command).expect("it starts").wait(Duration::from_secs(200))
}

fn object(ended: &Ended) -> Value {
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    serde_json::from_str(&ended.stdout).expect("one object on standard output")
}

#[test]
fn each_measurement_prints_its_object_and_writes_its_page() {
    let _alone = heavy();
    let dir = tempfile::tempdir().expect("a directory");
    let runs: [&[&str]; 3] = [
        &["send", "--rounds", "1", "--round-ms", "50"],
        &["outage", "--healthy-s", "1", "--outage-s", "1", "--rate", "5000"],
        &["replay", "--records", "5000"],
    ];
    for words in runs {
        let page = dir.path().join(format!("{}.html", words[0]));
        let mut all = words.to_vec();
        let plots = dir.path().join("plots");
        all.extend(["--json", "--html", page.to_str().expect("UTF-8")]);
        all.extend(["--svg-dir", plots.to_str().expect("UTF-8")]);
        let found = object(&bench(&all));
        assert_eq!(found["name"], words[0]);
        assert_eq!(found["is_good"], true, "{found}");
        let rows: usize = found["tables"]
            .as_array()
            .expect("tables")
            .iter()
            .map(|t| t["rows"].as_array().expect("rows").len())
            .sum();
        let points: usize = found["plots"]
            .as_array()
            .expect("plots")
            .iter()
            .flat_map(|p| p["lines"].as_array().expect("lines"))
            .map(|l| l["points"].as_array().expect("points").len())
            .sum();
        assert!(rows >= 2 && points > 3, "{found}");
        for plot in found["plots"].as_array().expect("plots") {
            let name = format!("{}-{}.svg", words[0], plot["name"].as_str().expect("a name"));
            let drawn = std::fs::read_to_string(plots.join(name)).expect("the drawing");
            assert!(drawn.starts_with("<svg"), "{drawn}");
        }
        let page = std::fs::read_to_string(page).expect("the page");
        assert!(page.contains("<svg") && page.ends_with("</html>\n"));
        say(&format!("bench {}: {rows} rows, {points} points", words[0]));
    }
}

#[test]
fn what_can_t_be_written_or_measured_is_said() {
    let ended = bench(&["send", "--rounds", "1", "--round-ms", "10", "--html", "/nowhere/at/all"]);
    assert_eq!(ended.code(), Some(1));
    assert!(ended.stderr.contains("writing /nowhere/at/all"), "{}", ended.stderr);
    assert_eq!(bench(&["send", "--threads", "0"]).code(), Some(2));
    assert_eq!(bench(&[]).code(), Some(2));
}
