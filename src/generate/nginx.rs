//! What scrimp knows about nginx: how to have one file judged on its own, and what its complaints mean.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::program::{self, ProgramError};

/// Which block of nginx.conf a file is written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// `http`.
    Http,
    /// `stream`.
    Stream,
}

impl Block {
    /// Its name in nginx.conf.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Stream => "stream",
        }
    }
}

/// Has `text` judged by itself, by an nginx that runs on nothing else and touches nothing that lives.
///
/// # Errors
/// What nginx finds wrong, with the lines of `text`, named as `shown_as`.
pub async fn judge(program: &str, block: Block, text: &str, shown_as: &Path) -> Result<(), ProgramError> {
    let build = program::run(&[program.to_owned(), "-V".to_owned()]).await?;
    let folder = ScratchFolder::new().map_err(|error| ProgramError::Start(program.to_owned(), error.to_string()))?;
    let file = folder.0.join("nginx.conf");
    fs::write(&file, format!("{}{text}\n}}\n", preamble(block, &build, &folder.0)))
        .map_err(|error| ProgramError::Start(program.to_owned(), error.to_string()))?;
    let word = |path: &Path| path.to_string_lossy().into_owned();
    let words = [program.to_owned(), "-t".to_owned(), "-c".to_owned(), word(&file), "-p".to_owned(), word(&folder.0)];
    let outcome = program::run(&words).await;
    outcome.map(|_| ()).map_err(|error| match error {
        ProgramError::Failed { command, status, said } => {
            ProgramError::Failed { command, status, said: said.replace(&word(&file), &word(shown_as)) }
        }
        other => other,
    })
}

/// Everything before the judged text, on one line, so that nginx counts the text's lines right.
///
/// As root, nginx makes its folders for temporary files and gives them to its user, even while it only tests:
/// so all of them are our own here.
fn preamble(block: Block, build: &str, folder: &Path) -> String {
    let folder = folder.display();
    let mut line = format!("daemon off; pid \"{folder}/pid\"; error_log stderr; ");
    if rustix::process::geteuid().is_root() {
        line.push_str("user root root; ");
    }
    match block {
        Block::Stream => {
            if let Some(module) = stream_module(build) {
                line.push_str(&format!("load_module \"{module}\"; "));
            }
            line.push_str("events {} stream { ");
        }
        Block::Http => {
            line.push_str("events {} http { access_log off; ");
            for part in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
                if !build.contains(&format!("--without-http_{part}_module")) {
                    line.push_str(&format!("{part}_temp_path \"{folder}/{part}\"; "));
                }
            }
        }
    }
    line
}

/// The stream module's path, where it is a file of its own.
fn stream_module(build: &str) -> Option<String> {
    let setting = |name: &str| build.split_ascii_whitespace().find_map(|word| word.strip_prefix(name));
    setting("--with-stream=").filter(|how| how.trim_end_matches(';') == "dynamic")?;
    let folder = match (setting("--modules-path="), setting("--prefix=")) {
        (Some(modules), _) => modules.to_owned(),
        (None, prefix) => format!("{}/modules", prefix.unwrap_or("/usr/local/nginx")),
    };
    let module = format!("{folder}/ngx_stream_module.so");
    Path::new(&module).exists().then_some(module)
}

/// A folder that only this user can enter, gone when dropped.
struct ScratchFolder(PathBuf);

impl ScratchFolder {
    fn new() -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("scrimp-check-{:016x}", fastrand::u64(..)));
        // Fails if something of that name is there already.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether a reload failed because there is nothing running that could reload: the file is loaded when it starts.
#[must_use]
pub fn is_not_running(said: &str) -> bool {
    ["invalid PID number \"\"", "is not active, cannot reload"].iter().any(|sign| said.contains(sign))
        || (said.contains(".pid\" failed (2:") && said.contains("open()"))
        || (said.contains("kill(") && said.contains("failed (3:"))
}

/// What nginx says, without what differs each time (its clock and its process) and without the line that only
/// repeats that the test failed. So the same complaint is the same text.
#[must_use]
pub fn essence(said: &str) -> String {
    let parts: Vec<&str> = said.split("; ").map(without_clock).collect();
    let told: Vec<&str> = parts.iter().copied().filter(|part| !is_verdict(part)).collect();
    if told.is_empty() { parts.join("; ") } else { told.join("; ") }
}

/// `2026/01/31 12:00:00 [emerg] 4711#4711: what` as `[emerg] what`; anything else as it is.
fn without_clock(part: &str) -> &str {
    let is_clock = part
        .get(..20)
        .is_some_and(|clock| clock.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'/' | b':' | b' ')));
    let rest = if is_clock { part.get(20..).unwrap_or(part) } else { part };
    match rest.split_once("#") {
        Some((_, after)) if is_clock => after.split_once(": ").map_or(rest, |(_, what)| what),
        _ => rest,
    }
}

fn is_verdict(part: &str) -> bool {
    let is_about_all =
        part.starts_with("nginx: configuration file ") || part.starts_with("nginx: the configuration file ");
    is_about_all && [" test failed", " syntax is ok"].iter().any(|end| part.ends_with(end))
}

/// Signs in what nginx says, and what to do.
const REMEDIES: [(&str, &str); 12] = [
    (
        "a duplicate default server",
        "another file already is the default server of that port: on Debian, remove /etc/nginx/sites-enabled/default",
    ),
    (
        "\"server_names_hash_bucket_size\" directive is duplicate",
        "remove server_names_hash_bucket_size from your own nginx configuration: scrimp sets what its names need",
    ),
    ("could not build server_names_hash", "set server_names_hash_bucket_size 512; in the http block of nginx.conf"),
    (
        "unknown directive \"stream\"",
        "nginx has no stream module: apt-get install libnginx-mod-stream (or load it in nginx.conf)",
    ),
    (
        "\"proxy_pass\" directive is not allowed here",
        "a file of template nginx-stream belongs in a stream block, not in conf.d: \
         use target /etc/nginx/stream.d/scrimp.conf, and include that folder in a stream block of nginx.conf",
    ),
    (
        "invalid parameter \"udp\"",
        "a file of template nginx-stream belongs in a stream block, not in conf.d: \
         use target /etc/nginx/stream.d/scrimp.conf, and include that folder in a stream block of nginx.conf",
    ),
    ("cannot load certificate", "check the paths under lb.certificate, and that nginx may read them"),
    ("key values mismatch", "chain and key of an lb.certificate do not belong together"),
    ("bind() to", "run this as root, or allow the port (CAP_NET_BIND_SERVICE); or is the port not of this machine?"),
    ("Address family not supported", "this machine has no IPv6: remove the listen lines with [::]"),
    ("Permission denied", "nginx can be asked only by a user that may read its files: run scrimp as root or use sudo"),
    (
        "duplicate upstream",
        "another file holds the same upstreams, one that an earlier lb.generate.target left, perhaps: remove it",
    ),
];

/// What to do about a complaint of nginx, where that is known; `ours` is the file that scrimp writes.
#[must_use]
pub fn remedy(said: &str, ours: &Path) -> Option<&'static str> {
    let known = REMEDIES.iter().find(|(sign, _)| said.contains(sign)).map(|(_, remedy)| *remedy);
    known.or_else(|| {
        if said.contains(&*ours.to_string_lossy()) {
            let unknown = said.contains("unknown directive");
            unknown.then_some("correct the template, or load the nginx module that knows the directive")
        } else {
            // nginx names the place of what it cannot read as FILE:LINE.
            said.contains(".conf:").then_some("scrimp's own file is in order: correct the one that nginx names")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_complaint_names_the_line_of_the_judged_text() {
        let text = "# one\nserver {\n  listen 127.0.0.1:1;\n  nonsense;\n}";
        let error = judge("nginx", Block::Http, text, Path::new("/etc/x.conf")).await.unwrap_err().to_string();
        assert!(error.contains("unknown directive \"nonsense\" in /etc/x.conf:4"), "{error}");
    }

    #[tokio::test]
    async fn a_stream_file_is_judged_in_a_stream_block() {
        let text = "server { listen 127.0.0.1:0; return \"\"; }";
        judge("nginx", Block::Stream, "", Path::new("/x")).await.unwrap();
        let error = judge("nginx", Block::Http, text, Path::new("/x")).await.unwrap_err().to_string();
        assert!(error.contains("/x:1"), "{error}");
    }

    #[test]
    fn the_same_complaint_is_the_same_text() {
        let said = "2026/11/21 10:36:06 [emerg] 30853#30853: unknown directive \"listn\" in /etc/nginx/x.conf:2; \
                    nginx: configuration file /etc/nginx/nginx.conf test failed";
        assert_eq!(essence(said), "unknown directive \"listn\" in /etc/nginx/x.conf:2");
        let said = "nginx: the configuration file /x syntax is ok; bind() to 0.0.0.0:80 failed (13: Permission denied)";
        assert_eq!(essence(said), "bind() to 0.0.0.0:80 failed (13: Permission denied)");
        let said = "nginx: [emerg] unexpected \"}\" in /etc/nginx/x.conf:2";
        assert_eq!(essence(said), said);
        for said in ["", "no # in it", "nginx: configuration file /x test failed", "2026/11/21 10:36:06 x"] {
            assert!(essence(said).len() <= said.len(), "{said}");
        }
    }

    #[test]
    fn a_remedy_depends_on_whose_file_is_broken() {
        let (ours, said) = (Path::new("/etc/nginx/conf.d/scrimp.conf"), "unknown directive \"x\" in /etc/nginx/");
        assert!(remedy(&format!("{said}conf.d/scrimp.conf:2"), ours).unwrap().contains("correct the template"));
        assert!(remedy(&format!("{said}mine.conf:2"), ours).unwrap().contains("own file is in order"));
        assert_eq!(remedy("what is this", ours), None);
    }

    #[test]
    fn an_nginx_that_does_not_run_is_told_from_one_that_refuses() {
        for said in [
            "nginx: [error] invalid PID number \"\" in \"/run/nginx.pid\"",
            "nginx: [error] open() \"/run/nginx.pid\" failed (2: No such file or directory)",
            "nginx: [alert] kill(4711, 1) failed (3: No such process)",
            "nginx.service is not active, cannot reload.",
        ] {
            assert!(is_not_running(said), "{said}");
        }
        assert!(!is_not_running("nginx: [emerg] open() \"/etc/nginx/x.conf\" failed (2: No such file or directory)"));
    }
}
