//! Renders the configuration of another balancer (nginx) and has it reloaded.

use std::path::PathBuf;

/// Settings of generate mode (`[lb.generate]`, and `[[lb.certificate]]` for its TLS paths).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Which template.
    pub template: TemplateSource,
    /// The file to write.
    pub target: PathBuf,
    /// The command that judges the configuration; none: the template's own.
    pub check: Option<Vec<String>>,
    /// The command that has it reloaded; none: the template's own.
    pub reload: Option<Vec<String>>,
    /// Certificates, in order of preference.
    pub certificates: Vec<Certificate>,
}

/// Where a template comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateSource {
    /// `nginx`: servers for HTTP applications, to be included in nginx's `http` block.
    Nginx,
    /// `nginx-stream`: servers for TCP and UDP applications, to be included in nginx's `stream` block.
    NginxStream,
    /// A Tera template of the user's.
    File(PathBuf),
}

/// A certificate chain and its key, as paths to PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The chain, the leaf first.
    pub chain: PathBuf,
    /// The leaf's private key.
    pub key: PathBuf,
}
