//! Owns the locked doors of a broker: certificates made for the test, listeners with TLS and
//! SASL, passwords and ACLs.
//!
//! The open listener stays as it is (whoever comes in there is a super user), so that the oracle
//! needs no password. A topic without an ACL is open to everybody.

use crate::broker::Kafka;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The user that [`Door::Login`] and [`Door::TlsLogin`] know, for SCRAM-SHA-512.
pub const USER: &str = "app";
/// Its first password; [`crate::Oracle::set_password`] changes it.
pub const PASSWORD: &str = "app-secret";
/// The user that they know for PLAIN, which keeps its password.
pub const PLAIN_USER: &str = "papp";
/// Its password.
pub const PLAIN_PASSWORD: &str = "papp-secret";

/// Every property of librdkafka that holds a secret, and one that is misspelt.
pub const SECRETS: [&str; 12] = [
    "sasl.password",
    "ssl.key.password",
    "ssl.key.pem",
    "ssl.certificate.pem",
    "ssl.ca.pem",
    "ssl.keystore.password",
    "sasl.oauthbearer.config",
    "sasl.oauthbearer.client.secret",
    "sasl.oauthbearer.assertion.private.key.passphrase",
    "sasl.oauthbearer.assertion.private.key.pem",
    "sasl.kerberos.kinit.cmd",
    "sasl.pasword",
];

/// A listener of a broker that was started with `secure`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Door {
    /// SASL PLAIN and SCRAM-SHA-512 without TLS.
    Login,
    /// TLS.
    Tls,
    /// TLS, and the client must show a certificate of the same CA.
    Mutual,
    /// SASL PLAIN and SCRAM-SHA-512 over TLS.
    TlsLogin,
    /// TLS with a certificate that expired yesterday; see [`Kafka::renew_certificate`].
    Expired,
    /// TLS with a certificate for another host.
    Misnamed,
}

impl Door {
    /// In the order of their ports.
    const ALL: [Door; 6] =
        [Door::Login, Door::Tls, Door::Mutual, Door::TlsLogin, Door::Expired, Door::Misnamed];

    fn name(self) -> &'static str {
        match self {
            Door::Login => "LOGIN",
            Door::Tls => "TLS",
            Door::Mutual => "MUTUAL",
            Door::TlsLogin => "TLSLOGIN",
            Door::Expired => "EXPIRED",
            Door::Misnamed => "MISNAMED",
        }
    }

    fn protocol(self) -> &'static str {
        match self {
            Door::Login => "SASL_PLAINTEXT",
            Door::TlsLogin => "SASL_SSL",
            _ => "SSL",
        }
    }
}

/// How many ports the doors take, behind the open one and the controller's.
pub(crate) const DOORS: u16 = Door::ALL.len() as u16;

/// Files of certificates and keys, all PEM, made by `openssl` for one broker.
#[derive(Clone, Debug)]
pub struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    /// The CA that signed the broker's certificates.
    #[must_use]
    pub fn ca(&self) -> String {
        self.path("ca.pem")
    }

    /// A CA that signed none of them.
    #[must_use]
    pub fn stranger(&self) -> String {
        self.path("stranger.pem")
    }

    /// A client's certificate, signed by the CA.
    #[must_use]
    pub fn client(&self) -> String {
        self.path("client.pem")
    }

    /// Its key.
    #[must_use]
    pub fn client_key(&self) -> String {
        self.path("client.key")
    }

    fn path(&self, file: &str) -> String {
        self.dir.join(file).display().to_string()
    }

    /// Makes all of them in `dir`.
    fn make(dir: PathBuf) -> Result<Certificates, String> {
        let io = |e: std::io::Error| format!("{}: {e}", dir.display());
        fs::create_dir_all(&dir).map_err(io)?;
        let names = "[right]\nsubjectAltName=IP:127.0.0.1,DNS:localhost\n\
                     [wrong]\nsubjectAltName=DNS:elsewhere.example\n[none]\n";
        fs::write(dir.join("names"), names).map_err(io)?;
        let certificates = Certificates { dir };
        for ca in ["ca", "stranger"] {
            let (key, file) = (format!("{ca}.key"), format!("{ca}.pem"));
            certificates.new_key(&key, &file, ca, &["-x509", "-days", "3650"])?;
        }
        certificates.leaf("broker", "right", 3650)?;
        certificates.leaf("expired", "right", -1)?;
        certificates.leaf("misnamed", "wrong", 3650)?;
        certificates.leaf("client", "none", 3650)?;
        Ok(certificates)
    }

    /// A key, its certificate, and both with the CA's in the one file that Kafka wants.
    fn leaf(&self, name: &str, names: &str, days: i32) -> Result<(), String> {
        let (key, request, file) =
            (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        let days = days.to_string();
        self.new_key(&key, &request, name, &["-new"])?;
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            &days,
            "-extfile",
            "names",
            "-extensions",
            names,
            "-out",
            &file,
        ])?;
        let mut store = String::new();
        for part in [&key, &file, "ca.pem"] {
            store += &fs::read_to_string(self.path(part)).map_err(|e| format!("{part}: {e}"))?;
        }
        fs::write(self.path(&format!("{name}.store")), store).map_err(|e| e.to_string())
    }

    /// A key, and what `how` makes of it, for this name.
    fn new_key(&self, key: &str, out: &str, name: &str, how: &[&str]) -> Result<(), String> {
        let subject = format!("/CN={name}");
        let curve = "ec_paramgen_curve:prime256v1";
        let kind = ["req", "-newkey", "ec", "-pkeyopt", curve, "-nodes"];
        self.openssl(&[&kind, how, &["-keyout", key, "-out", out, "-subj", &subject]].concat())
    }

    fn openssl(&self, arguments: &[&str]) -> Result<(), String> {
        let out = Command::new("openssl")
            .args(arguments)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .output()
            .map_err(|e| format!("openssl is not installed: {e}"))?;
        if out.status.success() {
            return Ok(());
        }
        Err(format!("openssl {}: {}", arguments[0], String::from_utf8_lossy(&out.stderr)))
    }
}

/// The doors of one broker.
#[derive(Clone, Debug)]
pub(crate) struct Secure {
    first_port: u16,
    pub(crate) certificates: Certificates,
}

impl Secure {
    /// Makes the certificates in the broker's directory.
    pub(crate) fn new(dir: &Path, first_port: u16) -> Result<Secure, String> {
        Ok(Secure { first_port, certificates: Certificates::make(dir.join("certificates"))? })
    }

    pub(crate) fn address(&self, door: Door) -> String {
        format!("127.0.0.1:{}", self.first_port + door as u16)
    }

    /// What `StorageTool format` must be told.
    pub(crate) fn format_arguments() -> [String; 2] {
        let user = format!("SCRAM-SHA-512=[name={USER},password={PASSWORD}]");
        ["--add-scram".to_owned(), user]
    }

    /// The broker's settings, which take the place of those of a broker with one open listener.
    pub(crate) fn properties(&self, port: u16, controller: u16) -> String {
        let (mut listeners, mut protocols) = (String::new(), String::new());
        for door in Door::ALL {
            let _ = write!(listeners, ",{}://{}", door.name(), self.address(door));
            let _ = write!(protocols, ",{}:{}", door.name(), door.protocol());
        }
        let store = |name: &str| self.certificates.path(&format!("{name}.store"));
        let mut text = format!(
            "listeners=PLAIN://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{listeners}
advertised.listeners=PLAIN://127.0.0.1:{port}{listeners}
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAIN:PLAINTEXT{protocols}
ssl.keystore.type=PEM
ssl.keystore.location={}
ssl.truststore.type=PEM
ssl.truststore.location={}
listener.name.expired.ssl.keystore.type=PEM
listener.name.expired.ssl.keystore.location={}
listener.name.misnamed.ssl.keystore.type=PEM
listener.name.misnamed.ssl.keystore.location={}
listener.name.mutual.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
allow.everyone.if.no.acl.found=true
",
            store("broker"),
            self.certificates.ca(),
            store("expired"),
            store("misnamed"),
        );
        const MODULES: &str = "org.apache.kafka.common.security";
        for door in ["login", "tlslogin"] {
            let _ = writeln!(
                text,
                "listener.name.{door}.plain.sasl.jaas.config={MODULES}.plain.PlainLoginModule required user_{PLAIN_USER}=\"{PLAIN_PASSWORD}\";
listener.name.{door}.scram-sha-512.sasl.jaas.config={MODULES}.scram.ScramLoginModule required;"
            );
        }
        text
    }
}

impl Kafka {
    /// `host:port` of a locked door.
    ///
    /// # Panics
    /// When the broker wasn't started with `secure`.
    #[must_use]
    pub fn door(&self, door: Door) -> String {
        self.secure().address(door)
    }

    /// The certificates of a broker that was started with `secure`.
    ///
    /// # Panics
    /// When it wasn't.
    #[must_use]
    pub fn certificates(&self) -> &Certificates {
        &self.secure().certificates
    }

    /// Puts a good certificate in the place of the expired one; the broker reads it when it
    /// starts again.
    ///
    /// # Panics
    /// When the file can't be written.
    pub fn renew_certificate(&self) {
        let certificates = self.certificates();
        let (good, bad) = (certificates.path("broker.store"), certificates.path("expired.store"));
        fs::copy(good, bad).expect("the store can be copied");
    }
}
