//! Pools become text. Pure, but for reading a template of the user's once.

use std::fmt;
use std::io::Write;

use tera::{Context, ErrorKind, Tera};

use super::TemplateSource;
use super::model::{BackendModel, HttpPort, HttpServer, Location, Model, PoolModel, StreamName, StreamPort};

/// The most bytes that a template may render to.
pub const RENDERED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The most bytes that a template file may have.
const SOURCE_BYTES_MAX: u64 = 1024 * 1024;

const NGINX: &str = include_str!("../../templates/nginx.conf.tera");
const NGINX_STREAM: &str = include_str!("../../templates/nginx-stream.conf.tera");

/// A compiled template.
///
/// Values are not escaped: none can hold a character that would need it (see [`Model`]).
#[derive(Clone)]
pub struct Template {
    tera: Tera,
    file: String,
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template").field("file", &self.file).finish_non_exhaustive()
    }
}

/// What is wrong with a template, where, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateError {
    /// The template's path, or the name of a built-in one.
    pub file: String,
    /// The line, if it is known.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub remedy: &'static str,
}

impl std::error::Error for TemplateError {}

impl fmt::Display for TemplateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, what, remedy } = self;
        match line {
            Some(line) => write!(f, "template {file}, line {line}: {what}; {remedy}"),
            None => write!(f, "template {file}: {what}; {remedy}"),
        }
    }
}

impl Template {
    /// Reads and compiles a template, and tries it on nothing at all and on one of everything, so that a mistake
    /// shows now and not when the first backend comes.
    ///
    /// # Errors
    /// The template cannot be read, does not parse, or uses a name that there is not.
    pub fn load(source: &TemplateSource) -> Result<Self, TemplateError> {
        let (file, text) = match source {
            TemplateSource::Nginx => ("nginx".to_owned(), NGINX.to_owned()),
            TemplateSource::NginxStream => ("nginx-stream".to_owned(), NGINX_STREAM.to_owned()),
            TemplateSource::File(path) => (path.display().to_string(), read_source(path)?),
        };
        let template = Self::compile(file, &text)?;
        for sample in [Model::empty_sample(), Model::full_sample()] {
            template.render(&sample)?;
        }
        Ok(template)
    }

    fn compile(file: String, text: &str) -> Result<Self, TemplateError> {
        let mut tera = Tera::new();
        tera.autoescape_on(Vec::<&str>::new());
        match tera.add_raw_template(&file, text) {
            Ok(()) => Ok(Self { tera, file }),
            Err(error) => Err(explain(&file, &error)),
        }
    }

    /// The text for a model.
    ///
    /// # Errors
    /// A name that there is not, an operation that does not fit its values, or more than [`RENDERED_BYTES_MAX`].
    pub fn render(&self, model: &Model) -> Result<String, TemplateError> {
        let mut out = Bounded::default();
        let result =
            Context::from_serialize(model).and_then(|context| self.tera.render_to(&self.file, &context, &mut out));
        match result {
            _ if out.overflown => {
                Err(self.error("it renders to more than 16 MiB", "look for a loop that repeats too much"))
            }
            Err(error) => Err(explain(&self.file, &error)),
            Ok(()) => String::from_utf8(out.bytes).map_err(|_| self.error("it renders to no text", "use UTF-8 only")),
        }
    }

    fn error(&self, what: &str, remedy: &'static str) -> TemplateError {
        TemplateError { file: self.file.clone(), line: None, what: what.to_owned(), remedy }
    }
}

fn read_source(path: &std::path::Path) -> Result<String, TemplateError> {
    let error = |what: String, remedy| TemplateError { file: path.display().to_string(), line: None, what, remedy };
    let unreadable = |cause: std::io::Error| {
        error(
            format!("it cannot be read: {cause}"),
            "lb.generate.template is nginx, nginx-stream or the path of a readable file",
        )
    };
    let length = std::fs::metadata(path).map_err(unreadable)?.len();
    if length > SOURCE_BYTES_MAX {
        return Err(error(format!("it has {length} bytes"), "a template may have 1 MiB at most"));
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

fn explain(file: &str, error: &tera::Error) -> TemplateError {
    let (line, what) = match error.kind() {
        ErrorKind::SyntaxError(report) | ErrorKind::RenderingError(report) => {
            (Some(report.span().start_line), report.message().to_owned())
        }
        other => place_in(file, &other.to_string()),
    };
    TemplateError {
        file: file.to_owned(),
        line,
        what: what.replace(char::is_control, " "),
        remedy: "the comment at the top of templates/nginx.conf.tera lists what a template can use",
    }
}

/// Some mistakes (a filter that there is not) come as one drawn text: what is wrong, and below it an arrow to
/// `FILE:LINE:COLUMN` and the line itself.
fn place_in(file: &str, report: &str) -> (Option<usize>, String) {
    let Some((what, place)) = report.split_once("-->") else {
        return (None, report.to_owned());
    };
    let line = place.trim_start().strip_prefix(file).and_then(|rest| rest.split(':').nth(1)?.parse().ok());
    (line, what.trim().trim_start_matches("error: ").to_owned())
}

/// Takes what a template gives, up to a bound.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    overflown: bool,
}

impl Write for Bounded {
    fn write(&mut self, more: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + more.len() > RENDERED_BYTES_MAX {
            self.overflown = true;
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Model {
    fn empty_sample() -> Self {
        let (pools, http, tcp, udp) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { ipv6: false, pools, http, tcp, udp, names_bucket_bytes: 0, stream_names_bucket_bytes: 0 }
    }

    /// One of everything, with and without backends.
    fn full_sample() -> Self {
        let stream = |listen, pool: &str| StreamPort {
            listen,
            app: "db".to_owned(),
            pool: pool.to_owned(),
            protocol: "tls",
            names: vec![],
        };
        let name =
            |name: &str, pool: &str| StreamName { name: name.to_owned(), app: "db".to_owned(), pool: pool.to_owned() };
        let names = vec![name("*.example.com", "scrimp-5432-db-0"), name("example.com", "")];
        Self {
            ipv6: true,
            pools: vec![
                sample_pool("scrimp-443-web-0", "http", "http"),
                sample_pool("scrimp-5432-db-0", "tcp", "tcp"),
                sample_pool("scrimp-53-dns-0", "udp", "udp"),
            ],
            http: vec![sample_port(80, false), sample_port(443, true)],
            tcp: vec![stream(5432, "scrimp-5432-db-0"), stream(5433, ""), StreamPort { names, ..stream(5434, "") }],
            udp: vec![stream(53, "scrimp-53-dns-0"), stream(54, "")],
            names_bucket_bytes: 128,
            stream_names_bucket_bytes: 128,
        }
    }
}

fn sample_pool(name: &str, transport: &'static str, protocol: &'static str) -> PoolModel {
    let backend = |protocol| BackendModel {
        address: "[2001:db8::1]:8080".to_owned(),
        weight: 1,
        node: "web-1".to_owned(),
        protocol,
    };
    PoolModel {
        name: name.to_owned(),
        app: "web".to_owned(),
        transport,
        policy: "round-robin",
        protocol,
        backends: vec![backend(protocol)],
        left_out: vec![backend("https")],
        zone_kib: 64,
    }
}

fn sample_port(listen: u16, tls: bool) -> HttpPort {
    let location = |path: &str, pool: &str, protocol| Location {
        path: path.to_owned(),
        matches: vec![path.to_owned()],
        app: "web".to_owned(),
        pool: pool.to_owned(),
        protocol,
    };
    let server = |default, otherwise, locations| HttpServer {
        default,
        proxies: true,
        grpc: true,
        names: if default { vec![] } else { vec!["www.example.com".to_owned()] },
        chain: "/chain.pem".to_owned(),
        key: "/key.pem".to_owned(),
        locations,
        otherwise,
    };
    let pool = "scrimp-443-web-0";
    let all = vec![location("/", pool, "http"), location("/empty", "", ""), location("/rpc", pool, "h2c")];
    HttpPort {
        listen,
        tls,
        servers: vec![
            server(false, "pool", all),
            server(false, "not-found", vec![]),
            server(true, "redirect", vec![]),
            server(true, "unavailable", vec![]),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(text: &str) -> Template {
        Template::compile("mine.tera".to_owned(), text).unwrap()
    }

    #[test]
    fn the_built_in_templates_load() {
        for source in [TemplateSource::Nginx, TemplateSource::NginxStream] {
            Template::load(&source).unwrap();
        }
    }

    #[test]
    fn a_template_that_does_not_parse_is_named_with_its_line() {
        let error = Template::compile("mine.tera".to_owned(), "a\nb {% for x in pools %}\nc").unwrap_err();
        assert!(error.line.is_some(), "{error}");
        let error = Template::compile("mine.tera".to_owned(), "a\n{{ }}\n").unwrap_err();
        assert_eq!((error.file.as_str(), error.line), ("mine.tera", Some(2)), "{error}");
        let error = Template::compile("mine.tera".to_owned(), "a\n\n{{ pools | nonsense }}").unwrap_err();
        assert_eq!((error.line, error.what.as_str()), (Some(3), "Unknown filter `nonsense`"), "{error}");
    }

    #[test]
    fn an_unknown_name_is_an_error_with_its_line() {
        let error = compile("a\n{{ nonsense }}").render(&Model::full_sample()).unwrap_err();
        assert_eq!(error.line, Some(2), "{error}");
        let error = compile("{% for p in pools %}\n\n{{ p.adress }}{% endfor %}").render(&Model::full_sample());
        assert_eq!(error.unwrap_err().line, Some(3));
    }

    #[test]
    fn rendering_has_a_bound() {
        let text = format!("{{% for i in range(end=20000) %}}{}{{% endfor %}}", "x".repeat(1000));
        let error = compile(&text).render(&Model::empty_sample()).unwrap_err();
        assert!(error.what.contains("16 MiB"), "{error}");
    }

    #[test]
    fn nothing_is_escaped() {
        let text = compile("{{ pools[0].backends[0].address }} {{ http[0].servers[0].locations[0].path }}");
        assert_eq!(text.render(&Model::full_sample()).unwrap(), "[2001:db8::1]:8080 /");
    }
}
