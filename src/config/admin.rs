//! Where the node answers people and programs: `[admin]`.

use std::path::PathBuf;

use crate::admin::AdminAddr;
use crate::cli;

use super::section::Section;
use super::source::{self, Environment, given_list};
use super::tree::{Node, quote};
use super::{LIST_MAX, key, value};

/// Where the running node answers.
pub const ADMIN_SOCKET: &str = "/run/scrimp/scrimp.sock";

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminConfig {
    /// Where it answers; none: nowhere.
    pub listen: Vec<AdminAddr>,
    /// Whether nobody asked for that address, so that doing without it is no failure.
    pub is_default: bool,
    /// A file whose first line is the token that a `POST` over TCP needs.
    pub token: Option<PathBuf>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: vec![AdminAddr::Unix(ADMIN_SOCKET.into())], is_default: true, token: None }
    }
}

/// Reads `[admin]`; unless `is_judged` the token's file need not be there.
pub(super) fn read(
    mut section: Section<'_>,
    flags: &cli::Common,
    env: Environment<'_>,
    is_judged: bool,
) -> AdminConfig {
    let over = given_list(&flags.admin, "--admin", "SCRIMP_ADMIN", env);
    let listen = section.take_list_unless("listen", over, admin_address);
    if listen.as_ref().is_some_and(|listen| listen.len() > LIST_MAX) {
        section.note(section.place("listen"), format!("more than {LIST_MAX} addresses"));
    }
    let token = section.take("token", |node| {
        let file = value::path(node)?;
        if is_judged {
            key::open_secret(&file).map_err(|error| format!("{error}{}", source::remedy(&file)))?;
        }
        Ok(file)
    });
    section.finish();
    let default = AdminConfig { token, ..AdminConfig::default() };
    match listen {
        Some(listen) => AdminConfig {
            listen: listen.into_iter().map(|(_, address)| address).collect(),
            is_default: false,
            ..default
        },
        None => default,
    }
}

fn admin_address(node: &Node) -> Result<AdminAddr, String> {
    const EXPECTED: &str = "unix:/PATH or IP:PORT, like unix:/run/scrimp/scrimp.sock or 127.0.0.1:9377";
    // What fits `sockaddr_un` with its final zero.
    const PATH_BYTES_MAX: usize = 107;
    let given = value::text(node, EXPECTED)?;
    let Some(path) = given.strip_prefix("unix:") else {
        return given.parse().map_err(|_| format!("expected {EXPECTED}, found {}", quote(given)));
    };
    let path = path.strip_prefix("//").unwrap_or(path);
    let path = node.place.folder().join(path);
    let bytes = path.as_os_str().len();
    match path.file_name() {
        None => Err(format!("expected {EXPECTED}, found {}", quote(given))),
        Some(_) if bytes > PATH_BYTES_MAX => {
            Err(format!("the path of a socket has at most {PATH_BYTES_MAX} bytes, this one has {bytes}"))
        }
        Some(_) => Ok(AdminAddr::Unix(path)),
    }
}
