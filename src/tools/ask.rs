//! Asks the running node.

use std::time::SystemTime;

use serde::Serialize;

use super::{End, environment, print};
use crate::admin::client::Client;
use crate::admin::table;
use crate::cli;
use crate::config::{self, Sources};

pub(super) async fn status(args: &cli::Show) -> Result<(), End> {
    let view = client(&args.client)?.status().await.map_err(anyhow::Error::new)?;
    show(args, &view, |view| table::status(view, SystemTime::now()))
}

pub(super) async fn members(args: &cli::Show) -> Result<(), End> {
    let view = client(&args.client)?.members().await.map_err(anyhow::Error::new)?;
    show(args, &view, |view| table::members(view, SystemTime::now()))
}

pub(super) async fn apps(args: &cli::Show) -> Result<(), End> {
    let view = client(&args.client)?.apps().await.map_err(anyhow::Error::new)?;
    show(args, &view, table::apps)
}

pub(super) async fn reload(args: &cli::Client) -> Result<(), End> {
    let done = client(args)?.post("/v1/reload").await.map_err(anyhow::Error::new)?;
    print(&done)
}

/// For containers: the status says it all, the reason goes to standard error.
pub(super) async fn healthcheck(args: &cli::Client) -> Result<(), End> {
    client(args)?.ready().await.map_err(|error| End::Failed(error.into()))
}

fn show<T: Serialize>(args: &cli::Show, view: &T, table: impl FnOnce(&T) -> String) -> Result<(), End> {
    if args.json {
        print(&serde_json::to_string_pretty(view).map_err(anyhow::Error::new)?)
    } else {
        print(&table(view))
    }
}

/// A client for the first address that the node answers at.
pub(super) fn client(args: &cli::Client) -> Result<Client, End> {
    let common = cli::Common::from(args);
    let admin = config::admin(&Sources::new(&common, &environment))?;
    let address = admin.listen.into_iter().next();
    let address = address.ok_or_else(|| anyhow::anyhow!("admin.listen is empty: the node answers nowhere"))?;
    let token = admin.token.and_then(|path| std::fs::read_to_string(path).ok());
    let token = token.and_then(|text| text.lines().next().map(|line| line.trim().to_owned()));
    Ok(Client::new(address, token))
}
