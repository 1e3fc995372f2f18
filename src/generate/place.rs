//! Whether nginx would load the file at all, and in which block: read from what `nginx -T` prints, which is its
//! whole configuration, file by file. Changes nothing.
//!
//! It finds what a person who sets up a first balancer meets, and says nothing where it cannot be sure.

use std::path::{Path, PathBuf};

use super::nginx::Block;

/// One directive, and where it stands.
#[derive(Debug, PartialEq, Eq)]
struct Directive<'a> {
    file: &'a str,
    /// The names of the blocks around it within its file, the outermost first.
    blocks: Vec<&'a str>,
    words: Vec<&'a str>,
}

/// Judges a file that stands: whether `dump` holds it.
///
/// # Errors
/// nginx does not load it: in words, with what to do.
pub fn judge_standing(dump: &str, target: &Path, block: Option<Block>) -> Result<(), String> {
    let mut files = dump.lines().filter_map(file_of).peekable();
    let Some(main) = files.peek().copied() else { return Ok(()) };
    let real_target = real(target);
    if files.any(|file| real(Path::new(file)) == real_target) {
        return Ok(());
    }
    Err(not_loaded(target, main, block))
}

/// Judges where a file named `target` would stand in the configuration that `dump` is.
///
/// # Errors
/// nginx would not load it, or would load it in a block that it is not for: in words, with what to do.
pub fn judge(dump: &str, target: &Path, block: Option<Block>) -> Result<(), String> {
    // Programs in other languages, with their own quotes and braces.
    if dump.contains("_by_lua_block") {
        return Ok(());
    }
    let all = directives(dump);
    let Some(main) = all.first().map(|first| Path::new(first.file)) else {
        return Ok(());
    };
    let includes: Vec<&Directive<'_>> = all.iter().filter(|one| one.includes(target, main)).collect();
    if includes.is_empty() {
        return Err(not_loaded(target, &main.display().to_string(), block));
    }
    // An include in a file that is itself included does not tell the block.
    let wrong = |name: &&str| block.is_some_and(|block| block.name() != *name);
    match includes.iter().find_map(|include| include.blocks.first().filter(|name| wrong(name))) {
        Some(name) => Err(format!(
            "nginx loads {} in its {name} block, and what lb.generate.template writes is for another one; {}",
            target.display(),
            remedy(target, block)
        )),
        None => Ok(()),
    }
}

fn not_loaded(target: &Path, main: &str, block: Option<Block>) -> String {
    format!("nginx does not load {}: no include in {main} reaches it; {}", target.display(), remedy(target, block))
}

fn remedy(target: &Path, block: Option<Block>) -> String {
    let folder = target.parent().unwrap_or(target).display();
    match block {
        Some(Block::Stream) => "use target /etc/nginx/stream.d/scrimp.conf, and put into nginx.conf, outside of \
                                http: stream { include /etc/nginx/stream.d/*.conf; }"
            .to_owned(),
        _ => format!("use target /etc/nginx/conf.d/scrimp.conf, or put into the http block: include {folder}/*.conf;"),
    }
}

/// A file of the configuration `dump`, other than `target`, that already has the default server of a port for which
/// `text` brings one. nginx itself says so too, but only once the file is in place.
#[must_use]
pub fn other_default(dump: &str, target: &Path, text: &str) -> Option<String> {
    let ours: Vec<&str> = directives(text).into_iter().filter_map(|one| one.default_port()).collect();
    let all = directives(dump);
    let theirs = all.iter().filter(|one| Path::new(one.file) != target);
    theirs
        .filter(|one| one.default_port().is_some_and(|port| ours.contains(&port)))
        .map(|one| one.file.to_owned())
        .next()
}

impl<'a> Directive<'a> {
    fn includes(&self, target: &Path, main: &Path) -> bool {
        let ["include", pattern] = self.words.as_slice() else { return false };
        let folder = main.parent().unwrap_or(main);
        let pattern = folder.join(pattern);
        matches(&pattern, target) || matches(&real(&pattern), &real(target))
    }

    /// The port of `listen … default_server`, where it is for every address.
    fn default_port(&self) -> Option<&'a str> {
        let ["listen", address, options @ ..] = self.words.as_slice() else { return None };
        let is_default = options.iter().any(|option| matches!(*option, "default_server" | "default"));
        let port = ["*:", "0.0.0.0:"].iter().find_map(|any| address.strip_prefix(any)).unwrap_or(address);
        (is_default && port.bytes().all(|byte| byte.is_ascii_digit())).then_some(port)
    }
}

/// A path by way of the folder that is meant: a folder may have several names. As it is, if there is no such folder.
fn real(path: &Path) -> PathBuf {
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    folder.zip(path.file_name()).map_or_else(|| path.to_owned(), |(folder, name)| folder.join(name))
}

/// Whether a pattern of an include covers a path. Patterns with more than stars are taken to cover it.
fn matches(pattern: &Path, path: &Path) -> bool {
    let mut parts = (pattern.components(), path.components());
    loop {
        match (parts.0.next(), parts.1.next()) {
            (None, None) => return true,
            (Some(pattern), Some(path)) => {
                let (pattern, path) = (pattern.as_os_str().to_string_lossy(), path.as_os_str().to_string_lossy());
                if !pattern.contains(['?', '[']) && !matches_name(&pattern, &path) {
                    return false;
                }
            }
            _ => return false,
        }
    }
}

fn matches_name(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        // A star does not stand for a dot in front.
        Some(("", _)) if name.starts_with('.') => false,
        Some((before, after)) => name
            .strip_prefix(before)
            .is_some_and(|rest| (0..=rest.len()).filter_map(|at| rest.get(at..)).any(|rest| matches_name(after, rest))),
    }
}

fn directives(dump: &str) -> Vec<Directive<'_>> {
    let (mut all, mut file, mut blocks, mut words) = (Vec::new(), "", Vec::new(), Vec::new());
    let mut rest = dump;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '#' => {
                let line = rest.lines().next().unwrap_or_default();
                if let Some(path) = file_of(line) {
                    file = path;
                    blocks.clear();
                    words.clear();
                }
                line.len()
            }
            '{' => {
                blocks.push(words.first().copied().unwrap_or_default());
                words.clear();
                1
            }
            '}' | ';' => {
                if !words.is_empty() {
                    all.push(Directive { file, blocks: blocks.clone(), words: std::mem::take(&mut words) });
                }
                if first == '}' {
                    blocks.pop();
                }
                1
            }
            space if space.is_whitespace() => space.len_utf8(),
            _ => {
                let (word, length) = word(rest);
                words.push(word);
                length
            }
        };
        rest = rest.get(length..).unwrap_or_default();
    }
    all
}

/// The file that begins after a line of the dump.
fn file_of(line: &str) -> Option<&str> {
    line.strip_prefix("# configuration file ").and_then(|path| path.strip_suffix(':'))
}

/// The word that a text begins with, without quotes, and how much of the text it takes.
fn word(text: &str) -> (&str, usize) {
    let quote = text.chars().next().filter(|first| matches!(first, '"' | '\''));
    let mut escaped = false;
    let end = text.char_indices().skip(usize::from(quote.is_some())).find(|(_, char)| {
        let ends = match quote {
            Some(quote) => *char == quote,
            None => char.is_whitespace() || matches!(char, ';' | '{' | '}'),
        };
        let was_escaped = escaped;
        escaped = !escaped && *char == '\\';
        ends && !was_escaped
    });
    let end = end.map_or(text.len(), |(at, _)| at);
    match quote {
        Some(_) => (text.get(1..end).unwrap_or_default(), (end + 1).min(text.len())),
        // `${name}` is no block.
        None => (text.get(..end).unwrap_or(text), end.max(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "\
# configuration file /etc/nginx/nginx.conf:
user www-data;
include /etc/nginx/modules-enabled/*.conf;
events { worker_connections 768; }
http {
    log_format x '{ \"a;\": \"$request\" }';
    include mime.types; # conf.d/*.conf is not this
    include /etc/nginx/conf.d/*.conf;
    include /etc/nginx/sites-enabled/*;
}
# stream { include /etc/nginx/stream.d/*.conf; }

# configuration file /etc/nginx/sites-enabled/default:
server {
    listen 80 default_server;
    listen [::]:80 default_server;
    server_name _;
}
";

    #[test]
    fn a_file_that_nothing_includes_is_told() {
        let judge = |path: &str, block| judge(DEBIAN, Path::new(path), block);
        assert_eq!(judge("/etc/nginx/conf.d/scrimp.conf", Some(Block::Http)), Ok(()));
        assert_eq!(judge("/etc/nginx/sites-enabled/scrimp", Some(Block::Http)), Ok(()));
        assert_eq!(judge("/etc/nginx/conf.d/scrimp.conf", None), Ok(()));
        for path in ["/etc/nginx/conf.d/scrimp.txt", "/etc/nginx/conf.d/.scrimp.conf", "/etc/nginx/conf.d/a/b.conf"] {
            let reason = judge(path, Some(Block::Http)).unwrap_err();
            assert!(reason.contains("no include in /etc/nginx/nginx.conf reaches it"), "{reason}");
        }
        let reason = judge("/etc/nginx/stream.d/scrimp.conf", Some(Block::Stream)).unwrap_err();
        assert!(reason.contains("stream { include /etc/nginx/stream.d/*.conf; }"), "{reason}");
        let reason = judge("/etc/nginx/conf.d/scrimp.conf", Some(Block::Stream)).unwrap_err();
        assert!(reason.contains("in its http block"), "{reason}");
        assert_eq!(super::judge("", Path::new("/x"), None), Ok(()));
    }

    #[test]
    fn a_file_that_stands_is_found_by_any_name_of_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("real")).unwrap();
        std::fs::create_dir(at("other")).unwrap();
        std::os::unix::fs::symlink(at("real"), at("link")).unwrap();
        let (main, real) = (at("nginx.conf"), at("real"));
        let (main, real) = (main.display(), real.display());
        let dump = format!(
            "# configuration file {main}:\nhttp {{ include {real}/*.conf; }}\n# configuration file {real}/scrimp.conf:\n"
        );
        let judge = |path: &str| judge_standing(&dump, &at(path), Some(Block::Http));
        assert_eq!((judge("real/scrimp.conf"), judge("link/scrimp.conf")), (Ok(()), Ok(())));
        assert!(judge("other/scrimp.conf").unwrap_err().contains("/other/*.conf;"));
        assert_eq!(super::judge(&dump, &at("link/new.conf"), Some(Block::Http)), Ok(()));
        assert!(super::judge(&dump, &at("other/new.conf"), Some(Block::Http)).is_err());
        assert_eq!(judge_standing("", Path::new("/x"), None), Ok(()));
    }

    #[test]
    fn another_default_server_is_found() {
        let target = Path::new("/etc/nginx/conf.d/scrimp.conf");
        let ours = |port| format!("server {{\n listen {port} default_server;\n listen [::]:{port} default_server;\n}}");
        let theirs = Some("/etc/nginx/sites-enabled/default".to_owned());
        assert_eq!(other_default(DEBIAN, target, &ours(80)), theirs);
        assert_eq!(other_default(DEBIAN, target, &ours(8080)), None);
        assert_eq!(other_default(DEBIAN, Path::new("/etc/nginx/sites-enabled/default"), &ours(80)), None);
    }

    #[test]
    fn any_text_is_read_to_its_end() {
        for text in ["\"", "'a", "a\\", "}}}", "{", ";;", "#", "a{b;c", "\u{e4}\u{e4}", "\\\u{e4}", "\"\u{e4}\" x;"] {
            let _ = directives(text);
        }
        let dump = "# configuration file /x:\na \"b c\" 'd;' { e f; }";
        let words: Vec<Vec<&str>> = directives(dump).into_iter().map(|one| one.words).collect();
        assert_eq!(words, [["e", "f"]]);
    }
}
