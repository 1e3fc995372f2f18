//! An S3 bucket, Amazon's or compatible, as a seed store.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::error::Error;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, Region, imds};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    RequestChecksumCalculation, ResponseChecksumValidation, SharedCredentialsProvider, SharedHttpClient,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::Object;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::url::S3Url;
use super::{
    Expected, Held, InvalidObject, Listing, OBJECT_BYTES_MAX, OBJECTS_MAX, Outcome, SeedError, SeedErrorKind,
    SeedObject, Stored, file_name_of, node_of,
};
use crate::name::{ClusterName, NodeName};

/// Pages of up to 1,000 keys looked at in one read: a prefix of ours holds a handful of keys.
const PAGES_MAX: usize = 4;
/// Objects fetched at the same time.
const FETCHES_MAX: usize = 8;
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
const ATTEMPT_LIMIT: Duration = Duration::from_secs(3);
const METADATA_LIMIT: Duration = Duration::from_secs(2);
const OPERATION_LIMIT: Duration = Duration::from_secs(5);

/// A bucket's prefix.
#[derive(Debug)]
pub(super) struct S3Store {
    place: Place,
    /// Built at the first use, and again after the credentials failed: the library reads them once, and a person
    /// who mends a file expects a running node to see it. A failure to build (no region found) is not kept either.
    bucket: Mutex<Option<Arc<Bucket>>>,
    /// What was read last: an object whose tag is the same is not fetched again.
    known: Mutex<HashMap<NodeName, Known>>,
}

#[derive(Debug, Clone)]
struct Known {
    tag: String,
    object: Result<SeedObject, String>,
}

impl S3Store {
    pub(super) fn new(url: S3Url, cluster: &ClusterName) -> Self {
        let parts = [url.prefix.as_str(), "clusters", cluster.as_str(), "seeds", ""];
        let folder = parts.into_iter().skip_while(|part| part.is_empty()).collect::<Vec<_>>().join("/");
        Self { place: Place { url, folder }, bucket: Mutex::default(), known: Mutex::default() }
    }

    pub(super) async fn list(&self) -> Result<Listing, SeedError> {
        let bucket = self.bucket().await?;
        let mut listing = Listing::default();
        let mut candidates = Vec::new();
        let mut stored: HashMap<NodeName, SystemTime> = HashMap::new();
        for object in self.noted(bucket.keys().await)? {
            let key = object.key.unwrap_or_default();
            let name = key.strip_prefix(&self.place.folder).unwrap_or_default();
            match node_of(name) {
                Some(node) if object.size.is_some_and(|size| size <= OBJECT_BYTES_MAX as i64) => {
                    stored.extend(object.last_modified.and_then(|time| Some((node.clone(), time.try_into().ok()?))));
                    candidates.push((node, object.e_tag.unwrap_or_default()));
                }
                Some(_) => listing.invalid.push(InvalidObject::new(name, "larger than 64 KiB")),
                // The folder itself, as some tools write it.
                None if name.is_empty() => {}
                None => listing.invalid.push(InvalidObject::new(name, "not a seed object")),
            }
        }
        candidates.truncate(OBJECTS_MAX);
        let objects = self.contents(&bucket, candidates).await?;
        for (node, known) in &objects {
            match &known.object {
                Ok(object) => {
                    let stored_at = stored.get(node).copied().unwrap_or(object.written_at);
                    listing.objects.push(Stored { object: object.clone(), stored_at });
                }
                Err(problem) => listing.invalid.push(InvalidObject::new(&file_name_of(node), problem)),
            }
        }
        *self.lock_known() = objects;
        Ok(listing)
    }

    pub(super) async fn read(&self, node: &NodeName) -> Result<Option<Held>, SeedError> {
        let fetched = self.bucket().await?.fetch(node).await;
        self.noted(fetched)
    }

    pub(super) async fn write(
        &self,
        node: &NodeName,
        bytes: Vec<u8>,
        expected: &Expected,
    ) -> Result<Outcome, SeedError> {
        let written = self.bucket().await?.write(node, bytes, expected).await;
        self.noted(written)
    }

    pub(super) async fn remove(&self, node: &NodeName, expected: &Expected) -> Result<Outcome, SeedError> {
        let removed = self.bucket().await?.remove(node, expected).await;
        self.noted(removed)
    }

    /// The content of the objects, fetched unless it is known. One that cannot be read is left out; if none can, the
    /// reason is the answer.
    async fn contents(
        &self,
        bucket: &Arc<Bucket>,
        candidates: Vec<(NodeName, String)>,
    ) -> Result<HashMap<NodeName, Known>, SeedError> {
        let mut contents = HashMap::new();
        let mut missing = Vec::new();
        for (node, tag) in candidates {
            match self.lock_known().get(&node).filter(|known| !tag.is_empty() && known.tag == tag) {
                Some(known) => drop(contents.insert(node, known.clone())),
                None => missing.push((node, tag)),
            }
        }
        let mut failure = None;
        for batch in missing.chunks(FETCHES_MAX) {
            for (node, tag, fetched) in fetch_all(bucket, batch).await {
                match fetched {
                    Ok(Some(held)) => drop(contents.insert(node, Known { tag, object: held.object })),
                    Ok(None) => {}
                    Err(error) => failure = Some(error),
                }
            }
        }
        match failure {
            Some(failure) if contents.is_empty() => Err(failure),
            _ => Ok(contents),
        }
    }

    fn lock_known(&self) -> MutexGuard<'_, HashMap<NodeName, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn bucket(&self) -> Result<Arc<Bucket>, SeedError> {
        let built = self.lock_bucket().clone();
        match built {
            Some(bucket) => Ok(bucket),
            None => {
                let bucket = Arc::new(Bucket::open(self.place.clone()).await?);
                Ok(Arc::clone(self.lock_bucket().insert(bucket)))
            }
        }
    }

    /// Passes a result on; credentials that failed are looked for again at the next use.
    fn noted<T>(&self, result: Result<T, SeedError>) -> Result<T, SeedError> {
        result.inspect_err(|error| {
            if matches!(error.kind, SeedErrorKind::Forbidden | SeedErrorKind::NoCredentials) {
                *self.lock_bucket() = None;
            }
        })
    }

    fn lock_bucket(&self) -> MutexGuard<'_, Option<Arc<Bucket>>> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Fetched = Result<Option<Held>, SeedError>;

async fn fetch_all(bucket: &Arc<Bucket>, batch: &[(NodeName, String)]) -> Vec<(NodeName, String, Fetched)> {
    let mut fetches = JoinSet::new();
    for (node, tag) in batch.iter().cloned() {
        let bucket = Arc::clone(bucket);
        fetches.spawn(async move {
            let fetched = bucket.fetch(&node).await;
            (node, tag, fetched)
        });
    }
    fetches.join_all().await
}

/// Which bucket, and where in it.
#[derive(Debug, Clone)]
struct Place {
    url: S3Url,
    /// The key before a file name, with a slash at its end.
    folder: String,
}

/// A bucket with a client to speak to it.
#[derive(Debug)]
struct Bucket {
    place: Place,
    client: Client,
}

impl Bucket {
    async fn open(mut place: Place) -> Result<Self, SeedError> {
        let url = &place.url;
        let http = http_client(url.endpoint.as_deref());
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .no_credentials()
            .http_client(http.clone())
            .timeout_config(time_limits())
            .retry_config(RetryConfig::standard().with_max_attempts(2).with_initial_backoff(Duration::from_millis(200)))
            // Objects are small and reading one has a limit of its own.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        if let Some(profile) = &url.profile {
            loader = loader.profile_name(profile);
        }
        // A store with an address of its own rarely cares; asking a cloud's metadata for it would take seconds.
        if let Some(region) = url.region.clone().map(Region::new).or_else(|| url.endpoint.is_some().then(any_region)) {
            loader = loader.region(region);
        }
        let shared = loader.load().await;
        // AWS_ENDPOINT_URL, or a profile's endpoint_url.
        place.url.endpoint = place.url.endpoint.or_else(|| shared.endpoint_url().map(str::to_owned));
        let url = &place.url;
        let Some(region) = shared.region().cloned().or_else(|| url.endpoint.is_some().then(any_region)) else {
            let problem = "was not asked: the bucket's region is not known; write region=REGION in the seed's address, \
                           or set AWS_REGION; a store that is not Amazon's needs endpoint=http://HOST:PORT there";
            return Err(place.error(SeedErrorKind::Settings, problem));
        };
        let mut config = aws_sdk_s3::config::Builder::from(&shared)
            .region(region.clone())
            .credentials_provider(credentials(url, region, http).await)
            .disable_s3_express_session_auth(true)
            // Older compatible stores refuse the checksums that Amazon's has by default.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            // Compatible stores seldom have a host name for each bucket.
            .force_path_style(url.endpoint.is_some());
        // Without one of ours the library may know one (AWS_ENDPOINT_URL_S3): setting none would undo that.
        if let Some(endpoint) = &url.endpoint {
            config = config.endpoint_url(endpoint);
        }
        Ok(Self { client: Client::from_conf(config.build()), place })
    }

    fn key(&self, node: &NodeName) -> String {
        format!("{}{}", self.place.folder, file_name_of(node))
    }

    /// The keys below our folder, freshest first.
    async fn keys(&self) -> Result<Vec<Object>, SeedError> {
        let mut keys = Vec::new();
        let mut next = None;
        for _ in 0..PAGES_MAX {
            let page = self.client.list_objects_v2().bucket(&self.place.url.bucket).prefix(&self.place.folder);
            let page = page.set_continuation_token(next.take()).send().await;
            let page = page.map_err(|error| self.place.explain("list", &error))?;
            keys.extend(page.contents.unwrap_or_default());
            next = page.next_continuation_token;
            if next.is_none() {
                break;
            }
        }
        let written = |object: &Object| object.last_modified.map(|time| (time.secs(), time.subsec_nanos()));
        keys.sort_by_key(|object| Reverse(written(object)));
        Ok(keys)
    }

    async fn fetch(&self, node: &NodeName) -> Fetched {
        let answer = match self.client.get_object().bucket(&self.place.url.bucket).key(self.key(node)).send().await {
            Ok(answer) => answer,
            Err(error) if error.code() == Some("NoSuchKey") => return Ok(None),
            Err(error) => return Err(self.place.explain("read", &error)),
        };
        let tag = answer.e_tag;
        match timeout(OPERATION_LIMIT, read_body(answer.body)).await {
            Ok(Ok(bytes)) => Ok(Some(Held { object: SeedObject::read(node, &bytes), tag })),
            Ok(Err(error)) => Err(self.place.error(SeedErrorKind::Failing, &format!("broke off an answer: {error}"))),
            Err(_) => Err(SeedError::slow(OPERATION_LIMIT)),
        }
    }

    async fn write(&self, node: &NodeName, bytes: Vec<u8>, expected: &Expected) -> Result<Outcome, SeedError> {
        let write = self.client.put_object().bucket(&self.place.url.bucket).key(self.key(node));
        let write = write.content_type("application/json").body(ByteStream::from(bytes));
        let write = match expected {
            Expected::Anything => write,
            Expected::Nothing => write.if_none_match("*"),
            Expected::Tag(tag) => write.if_match(tag),
        };
        match write.send().await {
            Ok(answer) => Ok(Outcome::Done(answer.e_tag)),
            Err(error) => outcome_of(&error, expected).ok_or_else(|| self.place.explain("write", &error)),
        }
    }

    async fn remove(&self, node: &NodeName, expected: &Expected) -> Result<Outcome, SeedError> {
        let mut removal = self.client.delete_object().bucket(&self.place.url.bucket).key(self.key(node));
        if let Expected::Tag(tag) = expected {
            removal = removal.if_match(tag);
        }
        match removal.send().await {
            Ok(_) => Ok(Outcome::Done(None)),
            Err(error) if error.code() == Some("NoSuchKey") => Ok(Outcome::Done(None)),
            Err(error) => outcome_of(&error, expected).ok_or_else(|| self.place.explain("remove", &error)),
        }
    }
}

/// What an error means that only an act with a condition meets; none for one that says something else.
fn outcome_of<E: ProvideErrorMetadata>(error: &SdkError<E>, expected: &Expected) -> Option<Outcome> {
    let status = error.raw_response()?.status().as_u16();
    match (expected, status) {
        (Expected::Anything, _) => None,
        // Amazon's says 409 if another write is under way, and 404 if what should have a tag is not there.
        (_, 409 | 412) => Some(Outcome::Refused),
        (Expected::Tag(_), 404) if error.code() != Some("NoSuchBucket") => Some(Outcome::Refused),
        // Perhaps something else is wrong: then the same act without a condition fails too, and says what.
        (_, 400 | 405 | 501) => Some(Outcome::Unsupported),
        _ => None,
    }
}

/// What the signature for a compatible store names where nothing else is said: they take Amazon's first.
fn any_region() -> Region {
    Region::from_static("us-east-1")
}

/// Plain `http://` needs no certificates: the machine's are only read for a store that is spoken to by TLS.
fn http_client(endpoint: Option<&str>) -> SharedHttpClient {
    let is_plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    let provider = Provider::Rustls(CryptoMode::AwsLc);
    let client = aws_smithy_http_client::Builder::new().tls_provider(provider);
    let trust = TlsContext::builder().with_trust_store(TrustStore::empty().with_native_roots(!is_plain)).build();
    match trust {
        Ok(trust) => client.tls_context(trust).build_https(),
        Err(_) => client.build_https(),
    }
}

fn time_limits() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_LIMIT)
        .operation_attempt_timeout(ATTEMPT_LIMIT)
        .operation_timeout(OPERATION_LIMIT)
        .build()
}

/// The file that the address names, else the usual places: environment, profile, container, instance.
async fn credentials(url: &S3Url, region: Region, http: SharedHttpClient) -> SharedCredentialsProvider {
    let settings = ProviderConfig::without_region().with_http_client(http);
    if let Some(file) = &url.credentials {
        let profile = url.profile.as_deref().unwrap_or("default");
        return SharedCredentialsProvider::new(credentials_file(file, profile, &settings));
    }
    // Outside of Amazon's network nobody answers there, and the limit on the whole operation is not far.
    let metadata =
        imds::Client::builder().configure(&settings).max_attempts(2).operation_timeout(METADATA_LIMIT).build();
    let mut chain = DefaultCredentialsChain::builder().configure(settings).region(region).imds_client(metadata);
    if let Some(profile) = &url.profile {
        chain = chain.profile_name(profile);
    }
    SharedCredentialsProvider::new(chain.build().await)
}

// The names these types moved to are in a crate that is no dependency of ours for anything else.
#[allow(deprecated)]
fn credentials_file(file: &Path, profile: &str, settings: &ProviderConfig) -> ProfileFileCredentialsProvider {
    use aws_config::profile::profile_file::{ProfileFileKind, ProfileFiles};
    let files = ProfileFiles::builder().with_file(ProfileFileKind::Credentials, file).build();
    ProfileFileCredentialsProvider::builder().configure(settings).profile_files(files).profile_name(profile).build()
}

async fn read_body(mut body: ByteStream) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.next().await {
        bytes.extend_from_slice(&chunk.map_err(|error| error.to_string())?);
        if bytes.len() > OBJECT_BYTES_MAX {
            break;
        }
    }
    Ok(bytes)
}

impl Place {
    /// What an error of the SDK means for a person.
    fn explain<E>(&self, act: &str, error: &SdkError<E>) -> SeedError
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        match error {
            SdkError::ServiceError(answer) if !answer.raw().status().is_success() => self.explain_answer(act, error),
            SdkError::ServiceError(_) | SdkError::ResponseError(_) => self.error(SeedErrorKind::Settings, NOT_S3),
            _ => self.explain_silence(act, error),
        }
    }

    /// The store answered, with an error.
    fn explain_answer<E: ProvideErrorMetadata>(&self, act: &str, error: &SdkError<E>) -> SeedError {
        let answer = error.raw_response();
        let status = answer.map_or(0, |answer| answer.status().as_u16());
        let said =
            format!("{} ({status}: {})", error.code().unwrap_or("error"), error.message().unwrap_or("no reason"));
        let bucket = &self.url.bucket;
        match (error.code().unwrap_or_default(), status) {
            ("NoSuchBucket", _) => self.error(
                SeedErrorKind::Missing,
                &format!("has no bucket {bucket}; create it, or correct its name; {said}"),
            ),
            ("RequestTimeTooSkewed" | "RequestExpired" | "RequestInTheFuture", _) => self.error(
                SeedErrorKind::Clock,
                &format!("says that the clocks differ; set this machine's clock (is NTP running?); {said}"),
            ),
            (
                "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "InvalidToken"
                | "ExpiredToken"
                | "TokenRefreshRequired",
                _,
            ) => self.error(SeedErrorKind::Forbidden, &self.refused(&said)),
            ("AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException", _)
            | (_, 301) => {
                let region = answer.and_then(|answer| answer.headers().get("x-amz-bucket-region")).unwrap_or("REGION");
                self.error(
                    SeedErrorKind::Settings,
                    &format!("keeps the bucket in another region; write ?region={region}; {said}"),
                )
            }
            (_, 401 | 403) => self.error(SeedErrorKind::Forbidden, &self.forbidden(act, &said)),
            // S3 gives its reasons.
            ("" | "NotFound", 400..=499) if error.message().is_none() => {
                self.error(SeedErrorKind::Settings, &format!("{NOT_S3}; {said}"))
            }
            _ => self.error(SeedErrorKind::Failing, &format!("failed to {act}; it is tried again; {said}")),
        }
    }

    fn forbidden(&self, act: &str, said: &str) -> String {
        let S3Url { bucket, prefix, .. } = &self.url;
        let below = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let hint = if act == "read" { "; without s3:ListBucket even an absent object is refused" } else { "" };
        format!(
            "refused to {act}: give this machine s3:ListBucket on arn:aws:s3:::{bucket} and s3:GetObject (a balancer \
             also s3:PutObject and s3:DeleteObject) on arn:aws:s3:::{bucket}/{below}clusters/*{hint}; {said}"
        )
    }

    /// The keys themselves are wrong.
    fn refused(&self, said: &str) -> String {
        let whose = match &self.url.credentials {
            Some(file) => format!("in {}", file.display()),
            None => "that this machine has (environment, AWS profile or role)".to_owned(),
        };
        let endpoint = match self.url.endpoint {
            Some(_) => "",
            None => ", or name the store they are for: endpoint=http://HOST:PORT",
        };
        format!("refused the credentials {whose}; replace them{endpoint}; {said}")
    }

    /// The store did not answer: it was not found, not reached, too slow, or never asked.
    fn explain_silence<E: Error + 'static>(&self, act: &str, error: &SdkError<E>) -> SeedError {
        let chain = DisplayErrorContext(error).to_string().to_ascii_lowercase();
        let cause = root_cause(error);
        if chain.contains("credentials") || chain.contains("no identity") {
            return self.error(SeedErrorKind::NoCredentials, &self.no_credentials(&cause));
        }
        let is_timeout = matches!(error, SdkError::TimeoutError(_))
            || matches!(error, SdkError::DispatchFailure(failure) if failure.is_timeout());
        if is_timeout && !chain.contains("connect") {
            return self.error(SeedErrorKind::Slow, &format!("took too long to {act}; it is tried again; {cause}"));
        }
        let problem =
            format!("cannot be reached; check its address, the DNS and the network{}; {cause}", hint_of(&chain));
        self.error(SeedErrorKind::Unreachable, &problem)
    }

    fn no_credentials(&self, cause: &str) -> String {
        if let Some(file) = &self.url.credentials {
            let (file, profile) = (file.display(), self.url.profile.as_deref().unwrap_or("default"));
            return format!(
                "was not asked: the file that credentials= names gives none; check that {file} is there, that this \
                 user may read it, and that aws_access_key_id and aws_secret_access_key stand in it below [{profile}]; \
                 {cause}"
            );
        }
        // What the library tried stands in its message, at a length that nobody reads.
        let is_long = cause.contains("no credentials found in chain");
        let cause = if is_long { String::new() } else { format!("; {cause}") };
        let profile = self.url.profile.as_ref().map(|profile| format!(" {profile}")).unwrap_or_default();
        format!(
            "was not asked: no credentials were found in the environment, the AWS profile{profile} or the machine's \
             role; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, give this machine a role, or name a file in the \
             seed's address: ?credentials=/etc/scrimp/s3.credentials{cause}"
        )
    }

    fn error(&self, kind: SeedErrorKind, problem: &str) -> SeedError {
        let store = self.url.endpoint.as_deref().unwrap_or("Amazon's S3");
        SeedError::new(kind, format_args!("{store} {problem}"))
    }
}

const NOT_S3: &str = "gave an answer that is not S3's; check the endpoint, and what stands between it and this machine";

/// What a person may have mistaken, from the library's words for it.
fn hint_of(chain: &str) -> &'static str {
    if chain.contains("invalidcontenttype") {
        "; no TLS is spoken there: write endpoint=http://…"
    } else if chain.contains("certificate") {
        "; the certificate does not convince: check this machine's clock and its ca-certificates"
    } else if chain.contains("invalid http") || chain.contains("unexpected message") {
        "; no plain HTTP is spoken there: check the port, or write endpoint=https://…"
    } else {
        ""
    }
}

fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
