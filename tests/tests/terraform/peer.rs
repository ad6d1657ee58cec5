//! Who may talk to the provider: whoever has the key of the certificate that it was told, and nobody else.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::net::UnixStream,
    process::{Child, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
};
use tpi_store::identity::{Certificate, Holder, PrivateKey};
use tpi_tests::{Rig, program};

const COOKIE: &str = "d602bf8f470bc67ca7faa0386276bbdd4330efaf76d1a219cb4d6991ca9872b2";

struct Client {
    key: PrivateKey,
    certificate: Certificate,
}

impl Client {
    fn new() -> Result<Self> {
        let key = PrivateKey::generate()?;
        let now = Timestamp::now();
        let certificate = key.certify(
            Holder::User,
            now - SignedDuration::from_hours(1),
            now + SignedDuration::from_hours(1),
        )?;
        Ok(Self { key, certificate })
    }

    /// First byte of the server's, which it does not send before it has accepted us.
    fn greeted(&self, line: &str) -> Result<u8> {
        let parts: Vec<&str> = line.trim_end().split('|').collect();
        let [_, _, _, socket, _, certificate] = parts[..] else {
            anyhow::bail!("{line:?} is not a handshake")
        };
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(unbase64(certificate)?))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from(self.certificate.der.clone())],
                PrivatePkcs8KeyDer::from(self.key.to_pkcs8()).into(),
            )?;
        let mut connection = ClientConnection::new(Arc::new(config), "localhost".try_into()?)?;
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut first = [0u8];
        rustls::Stream::new(&mut connection, &mut stream).read_exact(&mut first)?;
        Ok(first[0])
    }
}

fn unbase64(text: &str) -> Result<Vec<u8>> {
    let digit = |c: u8| -> Result<u32> {
        Ok(u32::from(match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            other => anyhow::bail!("{other} is not of base 64"),
        }))
    };
    let mut bytes = Vec::new();
    for group in text.as_bytes().chunks(4) {
        let mut bits = 0;
        for place in 0..4 {
            bits = bits << 6 | group.get(place).map_or(Ok(0), |c| digit(*c))?;
        }
        bytes.extend(bits.to_be_bytes().into_iter().skip(1).take(group.len() - 1));
    }
    Ok(bytes)
}

/// Ends what it started.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn start(rig: &Rig, pem: &str) -> Result<(Started, String)> {
    let provider = program("TPI_PROVIDER", "terraform-provider-iterative")?;
    let mut command = rig.other(&provider, [""; 0]);
    command
        .env("TF_PLUGIN_MAGIC_COOKIE", COOKIE)
        .env("PLUGIN_PROTOCOL_VERSIONS", "5,6")
        .env("PLUGIN_CLIENT_CERT", pem);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let stdout = child.stdout.take().context("stdout")?;
    let started = Started(child);
    let mut line = String::new();
    let _length = BufReader::new(stdout).read_line(&mut line)?;
    Ok((started, line))
}

#[test]
fn only_the_key_of_the_told_certificate_gets_in() -> Result<()> {
    let rig = Rig::new()?;
    let (told, other) = (Client::new()?, Client::new()?);
    let (_provider, line) = start(&rig, &told.certificate.pem)?;
    ensure!(other.greeted(&line).is_err(), "another certificate was accepted");
    // The certificate is no secret: without its key it must be worth nothing.
    let thief = Client { key: PrivateKey::generate()?, certificate: told.certificate.clone() };
    ensure!(thief.greeted(&line).is_err(), "a certificate was accepted without its key");
    told.greeted(&line)?;
    Ok(())
}

#[test]
fn a_person_who_starts_it_is_told_what_it_is() -> Result<()> {
    let rig = Rig::new()?;
    let provider = program("TPI_PROVIDER", "terraform-provider-iterative")?;
    let told = tpi_tests::Running::spawn(rig.other(&provider, [""; 0]))?.wait()?.code(2)?;
    told.says("terraform install")?.says("started by Terraform")?;
    Ok(())
}
