//! Seed stores and the seeker, against real folders and a real S3 server.

#[path = "support/s3.rs"]
#[allow(dead_code)]
mod s3;
#[path = "support/stub_s3.rs"]
mod stub_s3;

use std::fs;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use scrimp::address::{Advertise, Ec2Metadata, resolve_with};
use scrimp::member::{NodeId, Role};
use scrimp::name::{ClusterName, NodeName};
use scrimp::report::{SeedCounters, SeedReport, StoreReport};
use scrimp::seed::{
    OBJECT_BYTES_MAX, PRUNED_MAX, Pace, SeedErrorKind, SeedObject, SeedStore, SeedUrl, Seeker, Written, survey,
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use s3::{BUCKET, S3};
use stub_s3::{Conditions, Mood, Stub};

// ---- stores: one contract, every kind that keeps objects

#[tokio::test]
async fn a_folder_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("not/there/yet");
    let url = format!("file://{}", root.display());
    let root = &root;
    contract(&url, async |name: &str, bytes: &[u8]| {
        let seeds = root.join("clusters/blue/seeds");
        fs::create_dir_all(&seeds).unwrap();
        fs::write(seeds.join(name), bytes).unwrap();
    })
    .await;
    let left: Vec<_> =
        fs::read_dir(root.join("clusters/blue/seeds")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "temporary files stay: {left:?}");
}

#[tokio::test]
async fn an_s3_bucket_keeps_the_contract() {
    let server = S3::start();
    let url = server.url("a/prefix");
    let client = raw_client(&server).await;
    let client = &client;
    contract(&url, async |name: &str, bytes: &[u8]| {
        let key = format!("a/prefix/clusters/blue/seeds/{name}");
        client.put_object().bucket(BUCKET).key(key).body(bytes.to_vec().into()).send().await.unwrap();
    })
    .await;
    // Without a prefix, keys start with no slash.
    let store = open(&server.url(""));
    store.publish(&object("lb-1", 1)).await.unwrap();
    let head = client.head_object().bucket(BUCKET).key("clusters/blue/seeds/lb-1.json").send().await;
    assert_eq!(head.unwrap().content_type(), Some("application/json"));
}

/// What every store that keeps objects does; `put` is how a stranger leaves something beside them.
async fn contract(url: &str, put: impl AsyncFn(&str, &[u8])) {
    let store = open(url);
    assert!(store.keeps_objects());
    assert_eq!(store.list().await.unwrap().len(), 0, "a missing folder or prefix is an empty store");
    store.withdraw(&object("lb-1", 1)).await.expect("what is not there is as good as removed");

    let old = SeedObject { written_at: object("x", 1).written_at - Duration::from_secs(3600), ..object("lb-2", 2) };
    store.publish(&old).await.unwrap();
    store.publish(&object("lb-1", 1)).await.unwrap();
    assert_eq!(held(&store).await, [object("lb-1", 1), old.clone()], "the freshest comes first");

    let moved = SeedObject { addresses: vec!["10.9.9.9:1".parse().unwrap()], ..object("lb-1", 1) };
    store.publish(&moved).await.unwrap();
    assert_eq!(held(&store).await, [moved.clone(), old.clone()], "a write replaces");

    let elsewhere = SeedStore::open(&url.parse().unwrap(), &"green".parse().unwrap());
    assert!(elsewhere.list().await.unwrap().is_empty(), "clusters do not see each other");

    junk(&store, &put, &[moved.clone(), old.clone()]).await;

    store.withdraw(&SeedObject { epoch: 7, ..moved.clone() }).await.unwrap();
    assert_eq!(held(&store).await.len(), 2, "another run's object is not ours to remove");
    let listing = store.list().await.unwrap();
    let is_old = |age: Duration| age > Duration::from_secs(600);
    let pruned = store.prune(&listing, |stored| is_old(stored.object.age(SystemTime::now()))).await.unwrap();
    assert_eq!(pruned, ["lb-2".parse().unwrap()]);
    store.withdraw(&moved).await.unwrap();
    assert!(store.list().await.unwrap().is_empty());

    crowd(url).await;
}

/// What strangers leave is passed over and told of, never removed.
async fn junk(store: &SeedStore, put: &impl AsyncFn(&str, &[u8]), good: &[SeedObject]) {
    let foreign = object("lb-9", 9).to_json();
    let huge = [foreign.as_slice(), &vec![b' '; OBJECT_BYTES_MAX]].concat();
    let pieces: [(&str, &[u8]); 6] = [
        ("half.json", b"{\"version\":1,\"node\":\"ha"),
        ("page.json", b"<html>no such page</html>"),
        ("empty.json", b""),
        ("renamed.json", &foreign),
        ("lb-9.json", &huge),
        ("README.txt", b"do not read me"),
    ];
    for (name, bytes) in pieces {
        put(name, bytes).await;
    }
    for _ in 0..2 {
        let listing = store.list().await.unwrap();
        assert_eq!(
            listing.objects.iter().map(|stored| &stored.object).collect::<Vec<_>>(),
            good.iter().collect::<Vec<_>>()
        );
        let mut named: Vec<&str> = listing.invalid.iter().map(|invalid| invalid.name.as_str()).collect();
        named.sort_unstable();
        assert_eq!(named, ["README.txt", "empty.json", "half.json", "lb-9.json", "page.json", "renamed.json"]);
        let huge = listing.invalid.iter().find(|invalid| invalid.name == "lb-9.json").unwrap();
        assert!(huge.problem.contains("64 KiB"), "{}", huge.problem);
    }
}

/// Writers that come all at once lose nothing of each other's.
async fn crowd(url: &str) {
    let names: Vec<String> = (10..30).map(|number| format!("crowd-{number}")).collect();
    let mut writers = tokio::task::JoinSet::new();
    for name in names.clone() {
        let store = open(url);
        writers.spawn(async move { store.publish(&object(&name, 1)).await.unwrap() });
    }
    writers.join_all().await;
    let listing = open(url).list().await.unwrap();
    let mut found: Vec<String> = listing.objects.iter().map(|stored| stored.object.node.to_string()).collect();
    found.sort();
    assert_eq!(found, names);
    assert!(listing.invalid.len() <= 6, "no half-written objects: {:?}", listing.invalid);
}

// ---- stores that refuse, fail or lie

#[tokio::test]
async fn s3_says_why_it_refuses() {
    let server = S3::start();
    open(&server.url("p")).publish(&object("lb-1", 1)).await.unwrap();

    let error = open(&server.url_as(BUCKET, "p", "wrong")).list().await.unwrap_err();
    assert_eq!(error.kind, SeedErrorKind::Forbidden, "{error}");
    assert!(error.to_string().contains("credentials"), "{error}");

    let reader = open(&server.url_as(BUCKET, "p", "reader"));
    assert_eq!(reader.list().await.unwrap().len(), 1);
    let error = reader.publish(&object("lb-2", 1)).await.unwrap_err();
    assert_eq!(error.kind, SeedErrorKind::Forbidden, "{error}");
    for word in ["s3:PutObject", "s3:ListBucket", "arn:aws:s3:::seed/p/clusters/*"] {
        assert!(error.to_string().contains(word), "{word} is not in: {error}");
    }

    let error = open(&server.url_as("no-such-bucket", "p", "admin")).list().await.unwrap_err();
    assert_eq!(error.kind, SeedErrorKind::Missing, "{error}");
    assert!(error.to_string().contains("no-such-bucket"), "{error}");

    let missing = format!("s3://seed/p?endpoint={}&credentials=/no/such/file", server.endpoint());
    let error = open(&missing).list().await.unwrap_err();
    assert_eq!(error.kind, SeedErrorKind::NoCredentials, "{error}");
    assert!(error.to_string().contains("/no/such/file is there"), "{error}");
}

#[tokio::test]
async fn credentials_that_are_mended_are_taken_without_a_restart() {
    let server = S3::start();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    let url = format!("s3://{BUCKET}/p?endpoint={}&credentials={}", server.endpoint(), file.display());
    let store = open(&url);
    assert_eq!(store.list().await.unwrap_err().kind, SeedErrorKind::NoCredentials);
    fs::copy(server.credentials("wrong"), &file).unwrap();
    assert_eq!(store.list().await.unwrap_err().kind, SeedErrorKind::Forbidden);
    fs::copy(server.credentials("reader"), &file).unwrap();
    assert!(store.list().await.unwrap().is_empty());
    assert_eq!(store.publish(&object("lb-1", 1)).await.unwrap_err().kind, SeedErrorKind::Forbidden);
    fs::copy(server.credentials("admin"), &file).unwrap();
    store.publish(&object("lb-1", 1)).await.unwrap();
}

#[tokio::test]
async fn an_instance_s_role_opens_the_bucket() {
    let server = S3::start();
    open(&server.url("p")).publish(&object("lb-1", 1)).await.unwrap();
    let (key, secret) = server.keys();
    let credentials = format!(
        r#"{{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"{key}","SecretAccessKey":"{secret}",
            "Token":"","Expiration":"2099-01-01T00:00:00Z","LastUpdated":"2020-01-01T00:00:00Z"}}"#
    );
    let metadata = Metadata::start(&[
        ("/latest/meta-data/iam/security-credentials/", "scrimp"),
        ("/latest/meta-data/iam/security-credentials/scrimp", &credentials),
        ("/latest/meta-data/placement/region", "eu-central-1"),
    ])
    .await;
    let said =
        list_in_environment(&format!("s3://{BUCKET}/p?endpoint={}", server.endpoint()), &metadata.endpoint()).await;
    assert!(said.contains("found lb-1"), "{said}");
}

#[tokio::test]
async fn where_nobody_gives_credentials_the_remedy_is_named_within_seconds() {
    let server = canned("HTTP/1.1 500 Not reached\r\ncontent-length: 0\r\n\r\n".to_owned()).await;
    let url = format!("s3://{BUCKET}/p?endpoint=http://{server}");
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for metadata in [silent.local_addr().unwrap(), Metadata::start(&[]).await.0] {
        let said = list_in_environment(&url, &format!("http://{metadata}")).await;
        assert!(said.contains("NoCredentials") && said.contains("?credentials="), "{said}");
    }
}

/// Lists a store in a process of its own: the environment decides there, and is shared by the tests of this one.
async fn list_in_environment(url: &str, metadata: &str) -> String {
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "list_by_the_environment", "--ignored", "--nocapture"]).env_clear();
    child.env("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata).env("SCRIMP_TEST_URL", url);
    let output = within(10, child.output()).await.unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Not a test by itself: what `list_in_environment` runs.
#[tokio::test]
#[ignore = "run by other tests, with an environment of its own"]
async fn list_by_the_environment() {
    let Ok(url) = std::env::var("SCRIMP_TEST_URL") else { return };
    match open(&url).list().await {
        Ok(listing) => listing.objects.iter().for_each(|stored| println!("found {}", stored.object.node)),
        Err(error) => println!("{:?}: {error}", error.kind),
    }
}

#[tokio::test]
async fn a_stopped_s3_server_costs_seconds_and_is_used_again_when_it_is_back() {
    let mut server = S3::start();
    let store = open(&server.url("p"));
    store.publish(&object("lb-1", 1)).await.unwrap();
    server.stop();
    for _ in 0..2 {
        let error = within(6, store.list()).await.unwrap_err();
        assert_eq!(error.kind, SeedErrorKind::Unreachable, "{error}");
        assert!(error.to_string().contains(&server.endpoint()), "{error}");
    }
    server.restart();
    eventually_async("recovery", async || {
        store.list().await.is_ok_and(|listing| listing.objects.iter().any(|stored| stored.object == object("lb-1", 1)))
    })
    .await;
}

#[tokio::test]
async fn a_store_that_never_answers_is_given_up_on() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let credentials = credentials_file();
    let url = s3_url_at(silent.local_addr().unwrap(), credentials.path());
    let error = within(7, open(&url).list()).await.unwrap_err();
    assert_eq!(error.kind, SeedErrorKind::Slow, "{error}");
}

#[tokio::test]
async fn answers_that_are_no_store_s_are_told_apart() {
    let credentials = credentials_file();
    let cases = [
        ("200 OK", "", "<html>hello</html>", SeedErrorKind::Settings, "endpoint"),
        ("403 Forbidden", "", "", SeedErrorKind::Forbidden, "s3:ListBucket"),
        ("403 Forbidden", "", "<Error><Code>RequestTimeTooSkewed</Code></Error>", SeedErrorKind::Clock, "NTP"),
        ("403 Forbidden", "", "<Error><Code>ExpiredToken</Code></Error>", SeedErrorKind::Forbidden, "credentials"),
        ("404 Not Found", "", "<Error><Code>NoSuchBucket</Code></Error>", SeedErrorKind::Missing, "bucket"),
        (
            "301 Moved Permanently",
            "x-amz-bucket-region: eu-north-1\r\n",
            "<Error><Code>PermanentRedirect</Code></Error>",
            SeedErrorKind::Settings,
            "?region=eu-north-1",
        ),
        ("500 Internal Server Error", "", "<Error><Code>InternalError</Code></Error>", SeedErrorKind::Failing, "500"),
    ];
    for (status, header, body, kind, word) in cases {
        let server = canned(format!(
            "HTTP/1.1 {status}\r\n{header}content-type: application/xml\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        ))
        .await;
        let error = within(8, open(&s3_url_at(server, credentials.path())).list()).await.unwrap_err();
        assert_eq!(error.kind, kind, "{status}: {error}");
        assert!(error.to_string().contains(word), "{word} is not in: {error}");
        assert!(!error.to_string().contains('\n'));
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_says_so() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let store = open(&format!("file://{}/file", folder.path().display()));
    for error in [store.list().await.unwrap_err(), store.publish(&object("lb-1", 1)).await.unwrap_err()] {
        assert_eq!(error.kind, SeedErrorKind::Missing, "{error}");
        assert!(error.to_string().contains("/file/clusters/blue/seeds"), "{error}");
    }
}

#[tokio::test]
async fn fixed_hosts_are_resolved_and_keep_nothing() {
    let store = open("localhost:7377");
    let found = store.list().await.unwrap().fixed;
    assert!(found.iter().any(|address| address.ip().is_loopback() && address.port() == 7377), "{found:?}");
    assert_eq!(open("[::1]:9").list().await.unwrap().fixed, ["[::1]:9".parse().unwrap()]);
    assert!(!store.keeps_objects());
}

#[test]
fn wrong_addresses_of_stores_are_refused_with_a_remedy() {
    let cases = [
        ("", "s3://BUCKET/PREFIX, file:///DIR or HOST:PORT"),
        ("gs://bucket", "\"gs\""),
        ("https://bucket.s3.amazonaws.com", "s3://BUCKET/PREFIX?endpoint=https://HOST"),
        ("s3://", "bucket is missing"),
        ("s3://b", "3 to 63"),
        ("s3://buc ket/x", "3 to 63"),
        ("s3://bucket/../x", "prefix"),
        ("s3://bucket/a b", "prefix"),
        ("s3://bucket?regio=x", "did you mean region?"),
        ("s3://bucket?color=x", "region, endpoint, profile, credentials"),
        ("s3://bucket?region", "no value"),
        ("s3://bucket?region=", "empty"),
        ("s3://bucket?region=a&region=b", "twice"),
        ("s3://bucket?region=a%zz", "%"),
        ("s3://bucket?region=a%0a", "%"),
        ("s3://bucket?endpoint=127.0.0.1:9000", "endpoint=http://HOST:PORT"),
        ("s3://bucket?endpoint=ftp://host", "endpoint=http://HOST:PORT"),
        ("s3://bucket?endpoint=http://host/path", "endpoint=http://HOST:PORT"),
        ("s3://bucket?credentials=keys", "absolute"),
        ("s3://bucket?endpoint=http://host:99999", "endpoint=http://HOST:PORT"),
        ("s3://bucket?endpoint=http://host:0", "endpoint=http://HOST:PORT"),
        ("s3://bucket?endpoint=http://host?region=x", "follow a &"),
        ("s3://bucket?endpoint_url=http://host", "did you mean endpoint?"),
        ("s3://bucket/p&endpoint=http://host", "follows a ?"),
        ("s3://host:9000/bucket", "?endpoint=http://HOST:PORT"),
        ("s3:/bucket/p", "slashes are missing"),
        ("file:/var/lib", "slashes are missing"),
        ("s3://bucket?access_key=a&secret_key=hush", "credentials=/etc/scrimp/s3.credentials"),
        ("s3://bucket?colour=x&AWS_SECRET_ACCESS_KEY=hush", "region, endpoint, profile, credentials"),
        ("s3://AKIA:hush@bucket/x", "credentials=/etc/scrimp/s3.credentials"),
        ("s3://bucket?endpoint=http://me:hush@host", "must not hold a user or password"),
        ("file://relative/dir", "file:///"),
        ("file:///a/../b", ".."),
        ("file:///a?region=x", "?"),
        ("lb-1", "HOST:7377"),
        ("lb-1:", "1 to 65535"),
        ("lb-1:0", "1 to 65535"),
        ("lb-1:99999", "1 to 65535"),
        ("10.0.0.1", "10.0.0.1:7377"),
        ("10.0.0.1:0", "1 to 65535"),
        ("0.0.0.0:7377", "not the address of a machine"),
        ("224.0.0.1:7377", "not the address of a machine"),
        ("10.0.0.256:7377", "not an IPv4 address"),
        ("2001:db8::1", "[2001:db8::1]:7377"),
        ("2001:db8::zz:7377", "brackets"),
        ("under_score:7377", "host name"),
        ("a\nb:1", "control characters"),
    ];
    for (text, word) in cases {
        let error = text.parse::<SeedUrl>().expect_err(text).to_string();
        assert!(error.contains(word), "{text:?}: {word} is not in: {error}");
        assert!(!error.contains("hush"), "a secret is shown: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[tokio::test]
async fn a_survey_tells_of_every_store_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let good = format!("file://{}", folder.path().display());
    open(&good).publish(&object("lb-1", 1)).await.unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let urls: Vec<SeedUrl> = [&format!("{good}/file"), &good].iter().map(|url| url.parse().unwrap()).collect();
    let told = survey(&urls, &cluster()).await;
    assert!(told[0].result.is_err());
    assert_eq!((&told[1].url, told[1].result.as_ref().unwrap().len()), (&urls[1], 1));
}

// ---- conditional writes: used where they are honoured, needed nowhere

#[tokio::test]
async fn another_run_of_the_same_name_shows_in_a_folder_and_in_a_bucket_that_honours_conditions() {
    let (folder, server, stub) = (tempfile::tempdir().unwrap(), S3::start(), Stub::start().await);
    let credentials = credentials_file();
    let file = format!("file://{}", folder.path().display());
    for url in [file, server.url("p"), s3_url_at(stub.address, credentials.path())] {
        namesakes(&url).await;
    }
    let requests = stub.state.lock().unwrap().requests.clone();
    for request in ["PUT if-none-match", "PUT if-match", "DELETE if-match"] {
        assert!(requests.iter().any(|made| made == request), "{request} is not among {requests:?}");
    }
}

async fn namesakes(url: &str) {
    let (first, second) = (open(url), open(url));
    let at = |epoch: u64, second: u64| {
        let address = format!("10.0.0.{epoch}:7377").parse().unwrap();
        let written_at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + second);
        SeedObject { addresses: vec![address], written_at, ..object("lb-1", epoch) }
    };
    assert_eq!(first.publish(&at(1, 0)).await.unwrap(), Written::Alone, "{url}: the first");
    assert_eq!(first.publish(&at(1, 60)).await.unwrap(), Written::Alone, "{url}: again");
    assert_eq!(second.publish(&at(2, 61)).await.unwrap(), Written::Alone, "{url}: what was left by a run before");
    for second_of in 62..70 {
        let told = first.publish(&at(1, second_of)).await.unwrap();
        assert_eq!(told, Written::Yielded(at(2, second_of - 1)), "{url}: the newer run stays");
        assert_eq!(second.publish(&at(2, second_of)).await.unwrap(), Written::Alone, "{url}");
    }
    // The newer one falls silent: after a while its place is taken.
    let mut told = Vec::new();
    for second_of in 70..75 {
        told.push(first.publish(&at(1, second_of)).await.unwrap());
    }
    assert_eq!(told.iter().filter(|told| **told == Written::Alone).count(), 2, "{url}: {told:?}");
    assert_eq!(told.iter().filter(|told| **told == Written::Over(at(2, 69))).count(), 1, "{url}: {told:?}");
    assert_eq!(second.publish(&at(2, 76)).await.unwrap(), Written::Over(at(1, 74)), "{url}: back, it is the newer one");
    first.withdraw(&at(1, 76)).await.unwrap();
    assert_eq!(held(&second).await, [at(2, 76)], "{url}: not the own one");
    // Somebody else's hand removed it.
    second.withdraw(&at(2, 76)).await.unwrap();
    assert!(held(&first).await.is_empty(), "{url}");
    assert_eq!(second.publish(&at(2, 77)).await.unwrap(), Written::Alone, "{url}: written again");
}

#[tokio::test]
async fn a_store_that_knows_no_conditions_is_written_to_all_the_same() {
    let credentials = credentials_file();
    let kinds = [
        (Conditions::Ignored, "ignored"),
        (Conditions::Refused(501), "501"),
        (Conditions::Refused(400), "400"),
        (Conditions::Failing, "never met"),
    ];
    for (conditions, kind) in kinds {
        let stub = Stub::start().await;
        stub.state.lock().unwrap().conditions = conditions;
        let store = open(&s3_url_at(stub.address, credentials.path()));
        for epoch in [1, 1, 2] {
            store.publish(&object("lb-1", epoch)).await.unwrap_or_else(|error| panic!("{kind}: {error}"));
            assert_eq!(held(&store).await, [object("lb-1", epoch)], "{kind}");
        }
        let requests: Vec<String> = std::mem::take(&mut stub.state.lock().unwrap().requests);
        let puts = requests.iter().filter(|made| made.starts_with("PUT if-")).count();
        match conditions {
            Conditions::Refused(_) => assert_eq!(puts, 1, "{kind}: asked once: {requests:?}"),
            _ => assert_eq!(puts, 3, "{kind}: {requests:?}"),
        }
        stub.put("p/clusters/blue/seeds/lb-2.json", object("lb-2", 1).to_json(), Duration::ZERO);
        let listing = store.list().await.unwrap();
        let pruned = store.prune(&listing, |stored| stored.object.node == "lb-2".parse().unwrap()).await.unwrap();
        // Who never meets a condition loses nothing by it but what was to go.
        assert_eq!(pruned.len(), usize::from(!matches!(conditions, Conditions::Failing)), "{kind}");
    }
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_no_strangers() {
    let (credentials, stub) = (credentials_file(), Stub::start().await);
    let store = open(&s3_url_at(stub.address, credentials.path()));
    store.publish(&object("lb-1", 1)).await.unwrap();
    stub.state.lock().unwrap().loses_answers = true;
    let error = store.publish(&object("lb-1", 1)).await.unwrap_err();
    assert_eq!(error.kind, SeedErrorKind::Slow, "{error}");
    stub.state.lock().unwrap().loses_answers = false;
    assert_eq!(store.publish(&object("lb-1", 1)).await.unwrap(), Written::Alone);
}

#[tokio::test]
async fn what_was_written_again_since_it_was_read_is_not_pruned() {
    let (folder, server, stub) = (tempfile::tempdir().unwrap(), S3::start(), Stub::start().await);
    let (file, credentials) = (format!("file://{}", folder.path().display()), credentials_file());
    for url in [file, server.url("p"), s3_url_at(stub.address, credentials.path())] {
        let (store, other) = (open(&url), open(&url));
        other.publish(&object("lb-2", 1)).await.unwrap();
        let listing = store.list().await.unwrap();
        let again =
            SeedObject { written_at: object("lb-2", 1).written_at + Duration::from_secs(1), ..object("lb-2", 1) };
        other.publish(&again).await.unwrap();
        assert!(store.prune(&listing, |_| true).await.unwrap().is_empty(), "{url}");
        assert_eq!(held(&store).await, [again], "{url}");
        let listing = store.list().await.unwrap();
        assert_eq!(store.prune(&listing, |_| true).await.unwrap().len(), 1, "{url}");
    }
}

// ---- the own address, as Amazon's instance metadata tells it

#[tokio::test]
async fn an_instance_learns_its_address_from_the_metadata() {
    let (v4, v6) = ("/latest/meta-data/local-ipv4", "/latest/meta-data/ipv6");
    let any: SocketAddr = "[::]:7377".parse().unwrap();
    let both = Metadata::start(&[(v4, "10.0.0.5"), (v6, "2001:db8::5")]).await;
    assert_eq!(ec2(any, &both).await.unwrap(), "10.0.0.5:7377");
    let only_v6 = Metadata::start(&[(v6, "2001:db8::5\n")]).await;
    assert_eq!(ec2(any, &only_v6).await.unwrap(), "[2001:db8::5]:7377");
    let error = ec2("0.0.0.0:7377".parse().unwrap(), &only_v6).await.unwrap_err();
    assert!(error.contains("2001:db8::5") && error.contains("[::]:7377"), "{error}");
    for wrong in ["", "<html>", "0.0.0.0", "224.0.0.1"] {
        let error = ec2(any, &Metadata::start(&[(v4, wrong)]).await).await.unwrap_err();
        assert!(error.contains("not an address") || error.contains("cannot be advertised"), "{wrong}: {error}");
    }
    let error = ec2(any, &Metadata::start(&[]).await).await.unwrap_err();
    assert!(error.contains("the instance has no address"), "{error}");
}

#[tokio::test]
async fn metadata_that_is_forbidden_or_absent_is_an_error_within_seconds() {
    let bind = "0.0.0.0:7377".parse().unwrap();
    let disabled = Ec2Metadata { endpoint: None, is_disabled: true };
    let error = resolve_with(&Advertise::Ec2, bind, &[], &disabled).await.unwrap_err();
    assert!(error.to_string().contains("AWS_EC2_METADATA_DISABLED"), "{error}");

    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for address in [silent.local_addr().unwrap(), closed] {
        let metadata = Ec2Metadata { endpoint: Some(format!("http://{address}")), is_disabled: false };
        let error = within(6, resolve_with(&Advertise::Ec2, bind, &[], &metadata)).await.unwrap_err();
        assert!(error.to_string().contains("is this an EC2 instance"), "{error}");
    }
    let metadata = Ec2Metadata { endpoint: Some("nonsense".to_owned()), is_disabled: false };
    let error = resolve_with(&Advertise::Ec2, bind, &[], &metadata).await.unwrap_err();
    assert!(error.to_string().contains("http://HOST:PORT"), "{error}");
}

async fn ec2(bind: SocketAddr, server: &Metadata) -> Result<String, String> {
    let metadata = Ec2Metadata { endpoint: Some(server.endpoint()), is_disabled: false };
    let resolved = within(6, resolve_with(&Advertise::Ec2, bind, &[], &metadata)).await;
    resolved.map(|(address, _)| address.to_string()).map_err(|error| error.to_string())
}

// ---- the seeker

#[tokio::test]
async fn a_balancers_object_is_there_before_its_first_read_stays_fresh_and_goes_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let pace = Pace { refresh: Duration::from_secs(2), ..Pace::default() };
    let seeker = Running::start(&[&url], Role::Balancer, pace, Some(me()));
    eventually("the first read", || seeker.store(0).last_ok.is_some()).await;
    assert_eq!(seeker.store(0).seeds, 1, "the first read sees the own object");
    assert!(seeker.counters.writes.get() >= 1);

    let store = open(&url);
    let first = held(&store).await[0].clone();
    assert!(first.age(SystemTime::now()) < Duration::from_secs(5), "written_at is set when it is written");
    let mut newest = first.written_at;
    eventually_async("a refresh", async || {
        newest = held(&store).await[0].written_at;
        newest > first.written_at
    })
    .await;

    let moved = SeedObject { addresses: vec!["10.1.1.1:5".parse().unwrap()], ..me() };
    seeker.publish.send_replace(Some(moved.clone()));
    let changed = Instant::now();
    eventually_async("the change", async || held(&store).await[0].addresses == moved.addresses).await;
    assert!(changed.elapsed() < Duration::from_secs(1), "a change is written at once");

    within(4, seeker.stop()).await;
    assert!(store.list().await.unwrap().is_empty(), "removed at shutdown");
}

#[tokio::test]
async fn what_is_found_comes_freshest_first_without_the_own_addresses() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let now = SystemTime::now();
    // In the order in which they are stored: a writer's clock that is wrong makes no balancer look dead.
    for (name, last, minutes) in [("lb-2", 2, 5), ("lb-4", 4, 0), ("lb-3", 3, 30)] {
        let addresses = vec![SocketAddr::from(([10, 0, 0, last], 7377)), me().addresses[0]];
        let written_at = now - Duration::from_secs(60 * minutes);
        open(&url).publish(&SeedObject { addresses, written_at, ..object(name, 1) }).await.unwrap();
    }
    let mut seeker = Running::start(&[&url], Role::Balancer, Pace::default(), Some(me()));
    let found = within(5, seeker.found.recv()).await.unwrap();
    assert_eq!(found, ["10.0.0.3:7377", "10.0.0.4:7377", "10.0.0.2:7377"].map(|a| a.parse().unwrap()));
    seeker.stop().await;
}

#[tokio::test]
async fn a_lonely_backend_reads_for_ever_and_rarely_once_it_is_not_alone() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let pace = Pace {
        alone_first: Duration::from_millis(1),
        alone_max: Duration::from_millis(4),
        backend: Duration::from_secs(3600),
        ..Pace::default()
    };
    let mut seeker = Running::start(&[&url], Role::Backend, pace, None);
    eventually("many reads", || seeker.counters.reads.get() >= 50).await;
    open(&url).publish(&object("lb-1", 1)).await.unwrap();
    assert_eq!(within(5, seeker.found.recv()).await.unwrap(), object("lb-1", 1).addresses);

    seeker.alone.send_replace(false);
    // The read that was under way, and no other.
    let mut reads = seeker.counters.reads.get();
    eventually_async("rest", async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let before = std::mem::replace(&mut reads, seeker.counters.reads.get());
        before == reads
    })
    .await;
    seeker.alone.send_replace(true);
    eventually("reads again", || seeker.counters.reads.get() > reads + 10).await;
    seeker.stop().await;
    assert_eq!(open(&url).list().await.unwrap().len(), 1, "a backend writes and removes nothing");
}

#[tokio::test]
async fn a_store_that_hangs_delays_no_other_and_no_shutdown() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (credentials, folder) = (credentials_file(), tempfile::tempdir().unwrap());
    let hung = s3_url_at(silent.local_addr().unwrap(), credentials.path());
    let good = format!("file://{}", folder.path().display());
    open(&good).publish(&object("lb-1", 1)).await.unwrap();
    let started = Instant::now();
    let mut seeker = Running::start(&[&hung, &good], Role::Balancer, Pace::default(), Some(me()));
    assert_eq!(within(2, seeker.found.recv()).await.unwrap(), object("lb-1", 1).addresses);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());

    eventually("the report", || seeker.store(0).error.is_some()).await;
    assert_eq!(seeker.store(1).error, None);
    assert_eq!((seeker.store(0).last_ok, seeker.store(0).seeds), (None, 0));
    assert!(seeker.store(0).url.starts_with("s3://seed"), "{}", seeker.store(0).url);
    assert!(seeker.counters.write_failures.get() >= 1);
    within(4, seeker.stop()).await;
    assert_eq!(open(&good).list().await.unwrap().len(), 1, "removed where it could be");
}

#[tokio::test]
async fn a_seeker_survives_the_loss_of_its_s3_server() {
    let mut server = S3::start();
    let pace = Pace { alone_max: Duration::from_millis(500), refresh: Duration::from_secs(1), ..Pace::default() };
    let seeker = Running::start(&[&server.url("p")], Role::Balancer, pace, Some(me()));
    eventually("a read", || seeker.store(0).seeds == 1).await;
    server.stop();
    eventually("the report", || seeker.store(0).error.is_some()).await;
    let told = seeker.store(0);
    assert_eq!(told.seeds, 1, "what it held is still told");
    assert!(told.last_ok.is_some());
    let (reads, writes) = (seeker.counters.reads.get(), seeker.counters.writes.get());
    server.restart();
    eventually("recovery", || {
        seeker.counters.reads.get() > reads && seeker.counters.writes.get() > writes && seeker.store(0).error.is_none()
    })
    .await;
    seeker.stop().await;
    assert!(open(&server.url("p")).list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_balancer_removes_what_vanished_a_day_ago_a_few_at_a_time_and_nothing_else() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let (credentials, stub) = (credentials_file(), Stub::start().await);
    // Neither this machine's clock nor the store's is what age is told by.
    stub.state.lock().unwrap().clock_ahead = 30 * DAY;
    let key = |name: &str| format!("p/clusters/blue/seeds/{name}.json");
    let put = |name: &str, written: Duration, stored: Duration| {
        let object = SeedObject { written_at: SystemTime::now() - written, ..object(name, 1) };
        stub.put(&key(name), object.to_json(), stored);
    };
    let dead: Vec<String> = (0..PRUNED_MAX + 3).map(|nth| format!("dead-{nth:02}")).collect();
    dead.iter().for_each(|name| put(name, 2 * DAY, 2 * DAY));
    put("lb-2", Duration::ZERO, Duration::ZERO);
    put("an-hour-ago", DAY - Duration::from_secs(3600), DAY - Duration::from_secs(3600));
    put("clock-behind", 9 * DAY, Duration::ZERO);
    put("copied", 9 * DAY, DAY / 2);
    stub.put(&key("garbage"), b"{".to_vec(), 9 * DAY);
    let kept = ["an-hour-ago", "clock-behind", "copied", "garbage", "lb-2", "me"].map(key);

    let millisecond = Duration::from_millis(1);
    let pace = Pace { alone_max: millisecond, balancer: millisecond, prune: Duration::ZERO, ..Pace::default() };
    let url = s3_url_at(stub.address, credentials.path());
    let seeker = Running::start(&[&url], Role::Balancer, pace, Some(me()));
    eventually("its object", || stub.keys().contains(&key("me"))).await;
    let some_reads = async || {
        let reads = seeker.counters.reads.get();
        eventually("reads", || seeker.counters.reads.get() > reads + 5).await;
    };
    some_reads().await;
    assert_eq!(stub.keys().len(), dead.len() + kept.len(), "who is alone removes nothing");
    seeker.alone.send_replace(false);
    eventually("the dead are gone", || !stub.keys().iter().any(|key| key.contains("dead-"))).await;
    some_reads().await;
    assert_eq!(stub.keys(), kept);
    let requests = stub.state.lock().unwrap().requests.clone();
    let removals = |made: &[String]| made.iter().filter(|made| *made == "DELETE if-match").count();
    assert_eq!(removals(&requests), dead.len(), "each once");
    let in_one_pass = requests.split(|made| made == "LIST").map(removals).max();
    assert_eq!(in_one_pass, Some(PRUNED_MAX), "a few at a time");
    seeker.stop().await;

    // Even where it looks as if all others were dead, a node's own object is not removed but by its end.
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    let seeker = Running::start(&[&url], Role::Balancer, Pace { refresh: DAY, ..pace }, Some(me()));
    eventually("its object", || seeker.store(0).seeds == 1 || seeker.counters.writes.get() > 0).await;
    let file = folder.path().join("clusters/blue/seeds/me.json");
    let old = SeedObject { written_at: SystemTime::now() - 9 * DAY, ..me() };
    fs::write(&file, old.to_json()).unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_modified(SystemTime::now() - 9 * DAY).unwrap();
    open(&url).publish(&object("lb-2", 1)).await.unwrap();
    let victim = folder.path().join("clusters/blue/seeds/old.json");
    fs::write(&victim, SeedObject { node: "old".parse().unwrap(), ..old }.to_json()).unwrap();
    fs::File::options().write(true).open(&victim).unwrap().set_modified(SystemTime::now() - 9 * DAY).unwrap();
    seeker.alone.send_replace(false);
    eventually("the dead is gone", || !victim.exists()).await;
    assert!(file.exists(), "its own object");
    seeker.stop().await;
}

#[tokio::test]
async fn a_living_balancer_is_found_among_a_hundred_dead_ones_at_the_first_read_whatever_its_clock_says() {
    let (credentials, stub) = (credentials_file(), Stub::start().await);
    for nth in 0..100_u8 {
        let ahead = SystemTime::now() + Duration::from_secs(3600 * u64::from(nth));
        let dead = SeedObject {
            addresses: vec![SocketAddr::from(([10, 0, 1, nth], 7377))],
            written_at: ahead,
            ..object(&format!("dead-{nth:02}"), 1)
        };
        stub.put(&format!("p/clusters/blue/seeds/dead-{nth:02}.json"), dead.to_json(), Duration::from_secs(900));
    }
    let behind = SeedObject { written_at: SystemTime::UNIX_EPOCH + Duration::from_secs(60), ..object("lb-2", 1) };
    stub.put("p/clusters/blue/seeds/lb-2.json", behind.to_json(), Duration::from_secs(59));
    let url = s3_url_at(stub.address, credentials.path());
    let pace = Pace { alone_first: Duration::from_millis(5), alone_max: Duration::from_millis(20), ..Pace::default() };
    let mut seeker = Running::start(&[&url], Role::Backend, pace, None);
    let mut tried = std::collections::HashSet::new();
    for _ in 0..14 {
        let found = within(5, seeker.found.recv()).await.unwrap();
        assert_eq!(found[0], behind.addresses[0]);
        tried.extend(found.into_iter().take(16));
    }
    assert!(tried.len() == 101, "only {} came to their turn", tried.len());
    seeker.stop().await;
}

#[tokio::test]
async fn a_first_write_that_hangs_delays_the_first_read_by_a_second_at_most() {
    let (credentials, stub) = (credentials_file(), Stub::start().await);
    stub.state.lock().unwrap().writes = Mood::Hanging;
    stub.put("p/clusters/blue/seeds/lb-1.json", object("lb-1", 1).to_json(), Duration::ZERO);
    let url = s3_url_at(stub.address, credentials.path());
    let started = Instant::now();
    let mut seeker = Running::start(&[&url], Role::Balancer, Pace::default(), Some(me()));
    assert_eq!(within(5, seeker.found.recv()).await.unwrap(), object("lb-1", 1).addresses);
    assert!(started.elapsed() < Duration::from_millis(1500), "{:?}", started.elapsed());
    within(5, seeker.stop()).await;
}

#[tokio::test]
async fn a_first_write_that_is_merely_slow_still_goes_before_the_first_read() {
    let (credentials, stub) = (credentials_file(), Stub::start().await);
    stub.state.lock().unwrap().writes = Mood::Slow(Duration::from_millis(200));
    let url = s3_url_at(stub.address, credentials.path());
    let seeker = Running::start(&[&url], Role::Balancer, Pace::default(), Some(me()));
    eventually("the first read", || seeker.store(0).last_ok.is_some()).await;
    assert_eq!(seeker.store(0).seeds, 1, "the first read sees the own object");
    seeker.stop().await;
}

#[tokio::test]
async fn no_store_however_ill_keeps_another_from_being_used_nor_the_end_from_coming() {
    let (credentials, folder) = (credentials_file(), tempfile::tempdir().unwrap());
    let good = format!("file://{}", folder.path().display());
    open(&good).publish(&object("lb-1", 1)).await.unwrap();
    let mut ill = Vec::new();
    for mood in [Mood::Slow(Duration::from_secs(2)), Mood::Failing(503), Mood::Failing(403), Mood::Hanging] {
        let stub = Stub::start().await;
        let mut state = stub.state.lock().unwrap();
        (state.reads, state.writes) = (mood, mood);
        drop(state);
        ill.push(stub);
    }
    let (empty, garbage, dead) = (Stub::start().await, Stub::start().await, Stub::start().await);
    for nth in 0..40_u8 {
        garbage.put(&format!("p/clusters/blue/seeds/g-{nth}.json"), vec![nth; 400], Duration::ZERO);
        let address = SocketAddr::from(([10, 0, 3, nth], 7377));
        let written_at = SystemTime::now() - Duration::from_secs(9000);
        let object = SeedObject { addresses: vec![address], written_at, ..object(&format!("d-{nth}"), 1) };
        dead.put(&format!("p/clusters/blue/seeds/d-{nth}.json"), object.to_json(), Duration::from_secs(9000));
    }
    ill.extend([empty, garbage, dead]);
    let mut urls: Vec<String> = ill.iter().map(|stub| s3_url_at(stub.address, credentials.path())).collect();
    urls.push(good);
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    for role in [Role::Backend, Role::Balancer] {
        let own = (role == Role::Balancer).then(me);
        let mut seeker = Running::start(&urls, role, Pace::default(), own);
        let started = Instant::now();
        while within(2, seeker.found.recv()).await.unwrap() != object("lb-1", 1).addresses {}
        assert!(started.elapsed() < Duration::from_millis(1500), "{:?}", started.elapsed());
        within(5, seeker.stop()).await;
    }
}

// ---- fixtures

struct Running {
    publish: watch::Sender<Option<SeedObject>>,
    alone: watch::Sender<bool>,
    found: mpsc::Receiver<Vec<SocketAddr>>,
    report: watch::Receiver<Arc<SeedReport>>,
    counters: Arc<SeedCounters>,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start(urls: &[&str], role: Role, pace: Pace, object: Option<SeedObject>) -> Self {
        let (report_tx, report) = watch::channel(Arc::new(SeedReport::default()));
        let (publish, publish_rx) = watch::channel(object);
        let (alone, alone_rx) = watch::channel(true);
        let (found_tx, found) = mpsc::channel(4);
        let (counters, shutdown) = (Arc::new(SeedCounters::default()), CancellationToken::new());
        let seeker = Seeker {
            urls: urls.iter().map(|url| url.parse().unwrap()).collect(),
            cluster: cluster(),
            me: "me".parse().unwrap(),
            id: NodeId(42),
            role,
            pace,
            counters: Arc::clone(&counters),
            report: report_tx,
        };
        let task = tokio::spawn(seeker.run(publish_rx, alone_rx, found_tx, shutdown.clone()));
        Self { publish, alone, found, report, counters, shutdown, task }
    }

    /// What is told of one store; as of an unheard one before the seeker has begun.
    fn store(&self, place: usize) -> StoreReport {
        let unheard = StoreReport { url: String::new(), last_ok: None, error: None, seeds: 0 };
        self.report.borrow().stores.get(place).cloned().unwrap_or(unheard)
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

fn cluster() -> ClusterName {
    "blue".parse().unwrap()
}

async fn held(store: &SeedStore) -> Vec<SeedObject> {
    store.list().await.unwrap().objects.into_iter().map(|stored| stored.object).collect()
}

fn open(url: &str) -> SeedStore {
    SeedStore::open(&url.parse().unwrap(), &cluster())
}

/// What the node under test publishes.
fn me() -> SeedObject {
    SeedObject { addresses: vec!["10.0.0.1:7377".parse().unwrap()], ..object("me", 1) }
}

/// An object as a store gives it back: written just now, to the second.
fn object(node: &str, epoch: u64) -> SeedObject {
    let node: NodeName = node.parse().unwrap();
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.elapsed_since_epoch());
    SeedObject { node, addresses: vec!["10.0.0.200:7377".parse().unwrap()], epoch, written_at: start }
}

/// The second in which the tests began, so that two objects of one test compare equal.
struct Began(std::sync::OnceLock<u64>);
static NOW: Began = Began(std::sync::OnceLock::new());
impl Began {
    fn elapsed_since_epoch(&self) -> u64 {
        *self.0.get_or_init(|| SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
    }
}

async fn raw_client(server: &S3) -> aws_sdk_s3::Client {
    let (key, secret) = server.keys();
    let config = aws_sdk_s3::Config::builder()
        .behavior_version_latest()
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .credentials_provider(aws_sdk_s3::config::Credentials::new(key, secret, None, None, "test"))
        .region(aws_sdk_s3::config::Region::new("us-east-1"))
        .endpoint_url(server.endpoint())
        .force_path_style(true);
    aws_sdk_s3::Client::from_conf(config.build())
}

fn credentials_file() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "[default]\naws_access_key_id = somebody\naws_secret_access_key = something\n").unwrap();
    file
}

fn s3_url_at(server: SocketAddr, credentials: &Path) -> String {
    format!("s3://seed/p?endpoint=http://{server}&credentials={}", credentials.display())
}

/// A server that answers every connection in the same way.
async fn canned(answer: String) -> SocketAddr {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = connection.read(&mut request).await;
            let _ = connection.write_all(answer.as_bytes()).await;
            let _ = connection.shutdown().await;
        }
    });
    address
}

/// A metadata service as an instance has it: version 2, so that nothing is told without a token.
struct Metadata(SocketAddr);

impl Metadata {
    async fn start(pages: &[(&str, &str)]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let pages: Arc<[(String, String)]> =
            pages.iter().map(|(path, page)| ((*path).to_owned(), (*page).to_owned())).collect();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let pages = Arc::clone(&pages);
                let service = service_fn(move |request: Request<Incoming>| {
                    let answer = Self::answer(&pages, &request);
                    async move { Ok::<_, std::convert::Infallible>(answer) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(connection), service));
            }
        });
        Self(address)
    }

    fn answer(pages: &[(String, String)], request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let page = |status: u16, text: &str| {
            let answer = Response::builder().status(status).header("x-aws-ec2-metadata-token-ttl-seconds", "300");
            answer.body(Full::new(Bytes::from(text.to_owned()))).unwrap()
        };
        let path = request.uri().path();
        if request.method() == "PUT" && path == "/latest/api/token" {
            return page(200, "a-token");
        }
        if request.headers().get("x-aws-ec2-metadata-token").is_none_or(|token| token != "a-token") {
            return page(401, "a token is needed");
        }
        pages
            .iter()
            .find(|(known, _)| known == path)
            .map_or_else(|| page(404, "no such page"), |(_, text)| page(200, text))
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.0)
    }
}

async fn within<T>(seconds: u64, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), future)
        .await
        .unwrap_or_else(|_| panic!("not within {seconds} s"))
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    eventually_async(what, async || is_so()).await;
}

async fn eventually_async(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
