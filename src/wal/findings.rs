//! Owns the words of a verification: what was found, where, and how much it weighs.

/// How much a finding weighs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Weight {
    /// Something is damaged or lost, and nobody has taken note of it yet.
    Damage,
    /// Damage that is already in quarantine: what is lost is lost, and counted.
    Known,
    /// No damage: an unfinished tail, a spare copy that is bad, something put aside.
    Note,
}

impl Weight {
    /// A short stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Weight::Damage => "damage",
            Weight::Known => "known",
            Weight::Note => "note",
        }
    }
}

/// One thing that a verification found.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Finding {
    /// How much it weighs.
    pub weight: Weight,
    /// A short stable name: `bad`, `cut`, `gap`, `missing`, `seal`, `header`, `foreign`,
    /// `unreadable`, `checkpoint`, `manifest`, `replayed`; of notes `tail`, `unfinished`,
    /// `newer_version`, `header_copy`, `locator_copy`, `checkpoint`, `manifest`, `rewrite`,
    /// `other_file`.
    pub verdict: &'static str,
    /// The file, relative to the directory.
    pub file: Option<String>,
    /// The first byte concerned.
    pub from: Option<u64>,
    /// The first byte behind it.
    pub to: Option<u64>,
    /// LSN of the last good record before it.
    pub lsn_before: Option<u64>,
    /// LSN of the first good record behind it.
    pub lsn_after: Option<u64>,
    /// Records that it costs.
    pub records_lost: u64,
    /// They were final: nothing that was still to be delivered is concerned.
    pub is_final: bool,
    /// In words.
    pub says: String,
}

impl Finding {
    pub(super) fn whole(
        weight: Weight,
        verdict: &'static str,
        file: Option<&str>,
        says: String,
    ) -> Finding {
        Finding {
            weight,
            verdict,
            file: file.map(str::to_owned),
            from: None,
            to: None,
            lsn_before: None,
            lsn_after: None,
            records_lost: 0,
            is_final: false,
            says,
        }
    }

    /// What was found and where: the same in two looks at the same damage.
    pub(super) fn place(&self) -> Place {
        (self.verdict, self.file.clone(), self.from, self.to)
    }
}

/// A verdict, the file, and the bytes there.
pub(super) type Place = (&'static str, Option<String>, Option<u64>, Option<u64>);

/// What a verification found in all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Verification {
    /// Segments that were looked at.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Good records in the log, final ones included.
    pub records: u64,
    /// Good records that were set aside.
    pub set_aside_records: u64,
    /// Every record below this LSN is final, as far as the checkpoint knows.
    pub watermark: Option<u64>,
    /// What lies in `quarantine/` and `newer-version/`: name and bytes.
    pub set_apart: Vec<(String, u64)>,
    /// What was found.
    pub findings: Vec<Finding>,
    /// Losses that no bytes stand for: the segment behind or with the gap, and its frame
    /// numbers, first and one behind the last.
    pub(super) losses: Vec<(u64, u64, u64)>,
}

impl Verification {
    /// Whether nothing is damaged beyond what is known.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|f| f.weight != Weight::Damage)
    }

    /// Where damage was found that isn't known yet.
    pub(super) fn damaged_places(&self) -> Vec<Place> {
        let damage = self.findings.iter().filter(|f| f.weight == Weight::Damage);
        damage.map(Finding::place).collect()
    }

    /// Takes in what another look, at other files, found.
    pub(super) fn add(&mut self, other: Verification) {
        self.segments += other.segments;
        self.bytes += other.bytes;
        self.records += other.records;
        self.set_aside_records += other.set_aside_records;
        self.watermark = other.watermark.or(self.watermark);
        self.set_apart.extend(other.set_apart);
        self.findings.extend(other.findings);
        self.losses.extend(other.losses);
    }

    /// Records lost by damage, known or not.
    #[must_use]
    pub fn records_lost(&self) -> u64 {
        self.findings.iter().map(|f| f.records_lost).sum()
    }
}
