//! A certificate authority for tests, and the servers' side of TLS.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;

/// A certificate authority that nobody knows but who is told; its files go with it.
#[derive(Debug)]
pub struct Ca {
    directory: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// A server's certificate with its key, as PEM text.
#[derive(Debug, Clone)]
pub struct ServerCertificate {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Default for Ca {
    fn default() -> Self {
        Self::new()
    }
}

impl Ca {
    /// Makes a new one.
    ///
    /// # Panics
    /// Here as in all methods: when keys cannot be made or files not written.
    pub fn new() -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters
            .distinguished_name
            .push(DnType::CommonName, "CA of the tests");
        let key = KeyPair::generate().expect("make a key");
        let certificate = parameters.self_signed(&key).expect("sign with our own key");
        let directory = tempfile::tempdir().expect("make a directory");
        std::fs::write(directory.path().join("ca.pem"), certificate.pem()).expect("write ca.pem");
        Self {
            directory,
            issuer: Issuer::new(parameters, key),
        }
    }

    /// The file with its certificate, for clients to trust.
    pub fn pem(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// The directory that holds nothing but the certificate's file.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Certifies a new key for loopback (`127.0.0.1`, `localhost`).
    pub fn certify(&self) -> ServerCertificate {
        let (certificate, key) = self.sign();
        ServerCertificate {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    fn sign(&self) -> (rcgen::Certificate, KeyPair) {
        let names = ["127.0.0.1", "localhost"].map(str::to_owned);
        let key = KeyPair::generate().expect("make a key");
        let certificate = CertificateParams::new(names)
            .and_then(|parameters| parameters.signed_by(&key, &self.issuer))
            .expect("certify a key");
        (certificate, key)
    }

    /// How a server with a new certificate speaks TLS.
    pub(super) fn server(&self) -> Arc<ServerConfig> {
        let (certificate, key) = self.sign();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_no_client_auth()
                    .with_single_cert(vec![certificate.der().clone()], key)
            })
            .expect("our own certificate serves");
        Arc::new(config)
    }
}

/// The cryptography that TLS in tests uses, whatever the process has as its default.
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
