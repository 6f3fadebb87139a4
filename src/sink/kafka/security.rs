//! Owns what the sink knows of its standing with the brokers: whether they refuse its login, or
//! one side refuses the other's TLS.
//!
//! No record is ever reported failed for either: it waits in librdkafka. What there is are error
//! events, at every try to connect again and for every broker (librdkafka holds back those that
//! repeat the last one within 30 s). So a refusal is a state, told once when it begins or its
//! cause changes, and once when it is over.

use super::errors::code;

/// How long a refusal stands after it was last heard of while other brokers let us in: longer
/// than librdkafka holds back a repetition.
const STANDS_NS: u64 = 40_000_000_000;

/// Most causes that are told of one refusal.
const CAUSES_MAX: usize = 16;

/// Who refuses whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// The broker refuses our login.
    Login,
    /// TLS fails: we refuse the broker's certificate, or the broker ours, or it isn't TLS.
    Tls,
}

impl Refusal {
    /// Its name in `stats()`.
    pub fn state(self) -> &'static str {
        match self {
            Refusal::Login => "auth_failed",
            Refusal::Tls => "tls_failed",
        }
    }
}

/// One state and why it holds.
#[derive(Default)]
struct State {
    /// The broker that told the newest cause, and what it said.
    reason: Option<String>,
    /// What brokers said, each once: they may differ, and take turns.
    causes: Vec<String>,
    heard_ns: u64,
}

/// The standing with all brokers.
#[derive(Default)]
pub(super) struct Security {
    login: State,
    tls: State,
    /// Why the last certificate was refused, until the error that follows takes it.
    certificate: Option<String>,
}

impl Security {
    /// Why the login fails, if it does.
    pub fn login(&self) -> Option<&String> {
        self.login.reason.as_ref()
    }

    /// Why TLS fails, if it does.
    pub fn tls(&self) -> Option<&String> {
        self.tls.reason.as_ref()
    }

    /// Whether any state holds.
    #[inline]
    pub fn is_refused(&self) -> bool {
        self.login.reason.is_some() || self.tls.reason.is_some()
    }

    /// Takes a line of librdkafka's log if it only tells what an error event tells as well.
    pub fn takes_log(&mut self, level: i32, facility: &str, text: &str) -> bool {
        match facility {
            "SSLCERTVRFY" => {
                if let Some((certificate, why)) =
                    text.split_once(") verification callback failed: ")
                {
                    let names = certificate.split_once("Certificate (").map_or("", |c| c.1);
                    self.certificate = Some(format!("the broker's certificate ({names}) {why}"));
                }
                true
            }
            // Written just before the event, for what is an error.
            "FAIL" => level <= 3,
            _ => false,
        }
    }

    /// An error event. If it is a refusal, says which, and its reason if it is a new one.
    pub fn hears(
        &mut self,
        error: i32,
        text: &str,
        now_ns: u64,
    ) -> Option<(Refusal, Option<&str>)> {
        let refusal = judge(error, text)?;
        let (broker, told) = split(text);
        let certificate = self.certificate.take();
        let (state, cause) = match refusal {
            Refusal::Login => (&mut self.login, told.to_owned()),
            Refusal::Tls => (&mut self.tls, certificate.unwrap_or_else(|| explained(told))),
        };
        state.heard_ns = now_ns;
        if state.causes.contains(&cause) || state.causes.len() == CAUSES_MAX {
            return Some((refusal, None));
        }
        state.reason = Some(format!("{broker}: {cause}"));
        state.causes.push(cause);
        Some((refusal, state.reason.as_deref()))
    }

    /// A broker answered. `was_connected`: one did before, too; then a refusal may be another
    /// broker's, and stands until it has not been heard of for long. Says what is over.
    pub fn answered(&mut self, was_connected: bool, now_ns: u64) -> Vec<Refusal> {
        let mut over = Vec::new();
        for (state, refusal) in [(&mut self.login, Refusal::Login), (&mut self.tls, Refusal::Tls)] {
            let stands = was_connected && now_ns < state.heard_ns.saturating_add(STANDS_NS);
            if state.reason.is_some() && !stands {
                *state = State::default();
                over.push(refusal);
            }
        }
        over
    }
}

fn judge(error: i32, text: &str) -> Option<Refusal> {
    match error {
        code::AUTHENTICATION => Some(Refusal::Login),
        code::SSL => Some(Refusal::Tls),
        // With TLS 1.3 our side of the handshake is over before the broker looks at our
        // certificate; its refusal is met by the first read.
        code::TRANSPORT if text.contains("SSL alert number") => Some(Refusal::Tls),
        _ => None,
    }
}

/// The broker's address, and what is told of it without how long that took.
fn split(text: &str) -> (&str, &str) {
    let (broker, told) = text.split_once(": ").unwrap_or(("a broker", text));
    let broker = broker.split_once("://").map_or(broker, |(_, address)| address);
    let broker = broker.rsplit_once('/').map_or(broker, |(address, _)| address);
    let told = match told.rfind(" (after ") {
        Some(at) if told[at..].contains(" in state ") => &told[..at],
        _ => told,
    };
    (broker, told)
}

/// Alerts that a broker sends when it doesn't like the client's certificate, or gets none.
const CERTIFICATE_ALERTS: [&str; 8] = ["40", "42", "43", "44", "45", "46", "48", "116"];

/// What OpenSSL told, with what to look at where that is known.
fn explained(told: &str) -> String {
    let alert = told.split_once("SSL alert number ").map(|(_, rest)| {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        &rest[..end]
    });
    match alert {
        Some(number) if CERTIFICATE_ALERTS.contains(&number) => format!(
            "the broker refuses the client's certificate, or wants one (ssl.certificate.location, ssl.key.location): {told}"
        ),
        _ => told.to_owned(),
    }
}

/// What is wrong with a broker's certificate, by OpenSSL's number, and what to look at.
pub(super) fn certificate_fault(x509_error: i32, depth: i32) -> String {
    let signer = depth > 0;
    match x509_error {
        9 if signer => "is signed by one that isn't valid yet".into(),
        9 => "isn't valid yet, or this machine's clock is wrong".into(),
        10 if signer => "is signed by one that has expired".into(),
        10 => "has expired, or this machine's clock is wrong".into(),
        2 | 18..=21 | 24 | 27 => "isn't signed by a CA that ssl.ca.location names".into(),
        23 => "was revoked".into(),
        62 | 64 => {
            "is for another host than the one in `brokers` or in the broker's advertised.listeners"
                .into()
        }
        other => format!("is refused: OpenSSL's verification error {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRONG: &str = "sasl_ssl://127.0.0.1:9093/bootstrap: SASL authentication error: Authentication failed (after 4ms in state AUTH_REQ, 3 identical error(s) suppressed)";
    const VERIFY: &str = "ssl://h:1/2: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker certificate could not be verified, verify that ssl.ca.location is correctly configured or root CA certificates are installed (install ca-certificates package) (after 8ms in state SSL_HANDSHAKE)";

    #[test]
    fn a_refusal_is_told_once_until_its_cause_changes_or_it_is_over() {
        let mut security = Security::default();
        let (refusal, reason) = security.hears(-169, WRONG, 1).unwrap();
        assert_eq!(refusal, Refusal::Login);
        assert_eq!(
            reason,
            Some("127.0.0.1:9093: SASL authentication error: Authentication failed")
        );
        // From the same broker by another name, and after another time.
        let again = WRONG.replace("bootstrap", "1").replace("4ms", "9ms");
        assert_eq!(security.hears(-169, &again, 2), Some((Refusal::Login, None)));
        let other = "sasl_ssl://127.0.0.1:9093/1: Unsupported SASL mechanism: PLAIN";
        assert!(security.hears(-169, other, 3).unwrap().1.is_some());
        assert_eq!(security.answered(false, 4), [Refusal::Login]);
        assert!(!security.is_refused() && security.answered(false, 5).is_empty());
        assert!(security.hears(-169, WRONG, 6).unwrap().1.is_some());
    }

    #[test]
    fn one_broker_of_several_keeps_the_state_until_it_is_silent_for_long() {
        let mut security = Security::default();
        assert!(security.hears(-169, WRONG, 0).is_some());
        assert!(security.answered(true, STANDS_NS - 1).is_empty());
        assert!(security.is_refused());
        assert_eq!(security.answered(true, STANDS_NS), [Refusal::Login]);
    }

    #[test]
    fn the_fault_of_a_certificate_is_named() {
        let mut security = Security::default();
        let log = "[thrd:ssl://h:1/2]: ssl://h:1/2: Certificate (subject=/CN=b, issuer=/CN=ca) verification callback failed: has expired, or this machine's clock is wrong";
        assert!(security.takes_log(3, "SSLCERTVRFY", log));
        let (refusal, reason) = security.hears(-181, VERIFY, 1).unwrap();
        assert_eq!(refusal, Refusal::Tls);
        assert_eq!(
            reason,
            Some(
                "h:1: the broker's certificate (subject=/CN=b, issuer=/CN=ca) has expired, or this machine's clock is wrong"
            )
        );
        assert_eq!(security.hears(-181, VERIFY, 2).unwrap().0, Refusal::Tls);
        assert!(
            security.tls().is_some_and(|r| r.contains("ssl.ca.location")),
            "librdkafka's words"
        );
        let faults = [9, 10, 20, 23, 62, 64, 77].map(|n| certificate_fault(n, 0));
        assert!(faults.iter().all(|f| !f.is_empty()));
        assert_eq!(faults[4], faults[5]);
        assert_ne!(certificate_fault(10, 0), certificate_fault(10, 1));
    }

    #[test]
    fn an_alert_is_the_brokers_refusal_and_a_lost_connection_is_none() {
        let mut security = Security::default();
        let alert = "ssl://h:1/2: Receive failed: error:0A000412:SSL routines::sslv3 alert bad certificate: SSL alert number 42 (after 1ms in state UP)";
        let (refusal, reason) = security.hears(-195, alert, 1).unwrap();
        assert_eq!(refusal, Refusal::Tls);
        assert!(reason.unwrap().contains("ssl.certificate.location"), "{reason:?}");
        assert_eq!(security.hears(-195, "h:1/2: Disconnected (after 3ms in state UP)", 2), None);
        assert_eq!(security.hears(-187, "1/1 brokers are down", 3), None);
        assert!(!security.takes_log(5, "FAIL", "x") && !security.takes_log(3, "OTHER", "x"));
    }
}
