//! Owns the rules for the properties of TLS and SASL: what this build has, and what must be set
//! together. librdkafka would ignore some mistakes, and go to the brokers unencrypted.

use super::refuse;
use crate::error::ConfigError;

/// What a build without TLS says.
const NEEDS_TLS: &str = "needs TLS, which this build of forebay lacks: build it with the feature \"ssl\" (the system's OpenSSL) or \"ssl-vendored\" (brings its own)";
const MECHANISMS: &str = "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512";

/// Checks the properties of TLS and SASL against each other and against the build.
pub(super) fn check(extra: &[(String, String)]) -> Result<(), ConfigError> {
    check_for(extra, cfg!(feature = "ssl"))
}

fn check_for(extra: &[(String, String)], has_tls: bool) -> Result<(), ConfigError> {
    let last = |names: &[&str]| {
        extra.iter().rfind(|(name, _)| names.contains(&name.as_str())).map(|(_, v)| v.as_str())
    };
    let first = |prefixes: &[&str]| {
        let starts = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
        extra.iter().map(|(name, _)| name.as_str()).find(|name| starts(name))
    };
    let protocol = last(&["security.protocol"]).unwrap_or("plaintext").to_ascii_lowercase();
    let (tls, sasl) = (protocol.ends_with("ssl"), protocol.starts_with("sasl"));
    let mechanism = last(&["sasl.mechanism", "sasl.mechanisms"]);
    let wanted = mechanism.unwrap_or("").to_ascii_uppercase();

    if let Some(name) = first(&["sasl.kerberos.", "sasl.oauthbearer.", "enable.sasl.oauthbearer."])
    {
        return Err(refuse(name, "***", format!("not supported; the mechanisms are {MECHANISMS}")));
    }
    if ["GSSAPI", "OAUTHBEARER"].contains(&wanted.as_str()) {
        let problem = format!("not supported; the mechanisms are {MECHANISMS}");
        return Err(refuse("sasl.mechanism", &wanted, problem));
    }
    if !has_tls {
        if let Some(name) = first(&["ssl.", "ssl_", "enable.ssl.", "https."]) {
            return Err(refuse(name, "***", NEEDS_TLS));
        }
        if tls {
            return Err(refuse("security.protocol", &protocol, NEEDS_TLS));
        }
        if wanted.starts_with("SCRAM") {
            return Err(refuse("sasl.mechanism", &wanted, NEEDS_TLS));
        }
    }
    if !tls && let Some(name) = first(&["ssl.", "enable.ssl."]) {
        let problem = format!(
            "has no effect with security.protocol = {protocol}: set that to SSL or SASL_SSL, or leave this out"
        );
        return Err(refuse(name, "***", problem));
    }
    if !sasl && let Some(name) = first(&["sasl."]) {
        let problem = format!(
            "has no effect with security.protocol = {protocol}: set that to SASL_SSL or SASL_PLAINTEXT, or leave this out"
        );
        return Err(refuse(name, "***", problem));
    }
    if sasl && mechanism.is_none() {
        let problem = format!("security.protocol = {protocol} needs it: {MECHANISMS}");
        return Err(refuse("sasl.mechanism", "", problem));
    }
    for name in ["sasl.username", "sasl.password"] {
        if sasl && last(&[name]).is_none_or(str::is_empty) {
            return Err(refuse(name, "", format!("{wanted} needs it")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str, has_tls: bool) -> Result<(), ConfigError> {
        let pairs = text.split_whitespace().filter_map(|p| p.split_once('='));
        let extra: Vec<_> = pairs.map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        check_for(&extra, has_tls)
    }

    const LOGIN: &str = "sasl.mechanism=PLAIN sasl.username=u sasl.password=hunter2";

    #[test]
    fn what_needs_tls_names_the_feature_where_there_is_none() {
        for (name, text) in [
            ("ssl.ca.location", "security.protocol=SSL ssl.ca.location=hunter2".to_owned()),
            ("security.protocol", "security.protocol=ssl".to_owned()),
            ("security.protocol", format!("security.protocol=SASL_SSL {LOGIN}")),
            (
                "enable.ssl.certificate.verification",
                "enable.ssl.certificate.verification=true".to_owned(),
            ),
            (
                "sasl.mechanism",
                format!("security.protocol=SASL_PLAINTEXT {LOGIN} sasl.mechanism=SCRAM-SHA-512"),
            ),
        ] {
            let error = checked(&text, false).unwrap_err();
            assert_eq!(error.name, name, "{error}");
            assert!(
                error.problem.contains("\"ssl\"") && error.problem.contains("\"ssl-vendored\""),
                "{error}"
            );
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        // These need none.
        checked(&format!("security.protocol=SASL_PLAINTEXT {LOGIN}"), false).unwrap();
        checked("security.protocol=PLAINTEXT compression.type=lz4", false).unwrap();
        checked("", false).unwrap();
    }

    #[test]
    fn what_would_be_ignored_or_is_missing_is_named() {
        for (name, text) in [
            ("ssl.ca.location", "ssl.ca.location=/ca.pem".to_owned()),
            (
                "ssl.ca.location",
                format!("ssl.ca.location=/c security.protocol=sasl_plaintext {LOGIN}"),
            ),
            ("sasl.mechanism", LOGIN.to_owned()),
            ("sasl.mechanism", "security.protocol=sasl_ssl sasl.username=u".to_owned()),
            ("sasl.username", "security.protocol=sasl_ssl sasl.mechanism=PLAIN".to_owned()),
            (
                "sasl.password",
                "security.protocol=sasl_ssl sasl.mechanism=PLAIN sasl.username=u sasl.password="
                    .to_owned(),
            ),
            ("sasl.mechanism", "security.protocol=sasl_ssl sasl.mechanisms=GSSAPI".to_owned()),
            ("sasl.kerberos.keytab", "sasl.kerberos.keytab=hunter2".to_owned()),
            ("sasl.oauthbearer.client.secret", "sasl.oauthbearer.client.secret=hunter2".to_owned()),
        ] {
            let error = checked(&text, true).unwrap_err();
            assert_eq!(error.name, name, "{error}");
            assert!(!error.problem.is_empty() && !error.to_string().contains("hunter2"), "{error}");
        }
        checked(&format!("security.protocol=SASL_SSL ssl.ca.location=/c {LOGIN}"), true).unwrap();
        checked("security.protocol=ssl ssl.key.password=x", true).unwrap();
    }
}
