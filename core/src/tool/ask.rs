//! `milena get|put|del|topology`: one call to a router, and its answer for people or for programs.

use std::{
    io::{self, IsTerminal as _, Write},
    time::Instant,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use milena_net::{
    cores::{self, Cores, CoresConfig},
    grpc::client::{CallError, Channel, ChannelLimits},
    http2::limits::LINK,
    stream::ReadBuffer,
};
use milena_proto::{
    limits,
    method::{Method, ROUTER_DELETE, ROUTER_GET, ROUTER_PUT, ROUTER_TOPOLOGY},
    router_server::{
        DeleteRequest, GetRequest, GetResponse, PutRequest, Slot, SlotState, Tier, TopologyRequest, TopologyResponse,
    },
};
use serde_json::{Value, json};

use super::{Del, Place, Put, Tool, ToolError, value};

impl Tool {
    pub(super) fn get(&self, place: &Place) -> Result<(), ToolError> {
        let key = place.key()?;
        let request = GetRequest { key: key.to_key().name().to_vec().into(), bucket: key.bucket().to_owned() };
        let response = self.ask(ROUTER_GET, request)?;
        let stdout = io::stdout();
        if self.json {
            print(stdout, format!("{}\n", found_json(&response)).as_bytes())?;
        } else if response.successful {
            let needs_line_end = stdout.is_terminal() && !response.value.ends_with(b"\n");
            let line_end: &[u8] = if needs_line_end { b"\n" } else { b"" };
            print(stdout, &[&response.value, line_end].concat())?;
        }
        if response.successful { Ok(()) } else { Err(ToolError::NotFound { key: key.to_key().to_string() }) }
    }

    pub(super) fn put(&self, put: &Put) -> Result<(), ToolError> {
        let key = put.place.key()?;
        let request = PutRequest {
            key: key.name().to_vec().into(),
            bucket: key.bucket().to_owned(),
            value: value(&put.value, io::stdin().lock())?,
            ttl_ms: put.ttl_ms,
            if_version: put.if_version.clone().unwrap_or_default(),
            if_absent: put.if_absent,
            ..PutRequest::default()
        };
        let response = self.ask(ROUTER_PUT, request)?;
        self.report(&json!({ "done": response.successful, "version": response.version }))
    }

    pub(super) fn del(&self, del: &Del) -> Result<(), ToolError> {
        let key = del.place.key()?;
        let request = DeleteRequest {
            key: key.name().to_vec().into(),
            bucket: key.bucket().to_owned(),
            if_version: del.if_version.clone().unwrap_or_default(),
            ..DeleteRequest::default()
        };
        let response = self.ask(ROUTER_DELETE, request)?;
        self.report(&json!({ "done": response.successful }))
    }

    pub(super) fn topology(&self) -> Result<(), ToolError> {
        let topology = self.ask(ROUTER_TOPOLOGY, TopologyRequest {})?;
        let text = if self.json { format!("{}\n", topology_json(&topology)) } else { topology_table(&topology) };
        print(io::stdout(), text.as_bytes())
    }

    /// What a write has to say, which is nothing to people: its exit code says it.
    fn report(&self, done: &Value) -> Result<(), ToolError> {
        if self.json { print(io::stdout(), format!("{done}\n").as_bytes()) } else { Ok(()) }
    }

    /// Asks the router once, from a core of its own.
    pub(super) fn ask<Q, A>(&self, method: Method<Q, A>, request: Q) -> Result<A, ToolError>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let router = self.router()?;
        cores::probe().map_err(|error| ToolError::Machine(error.to_string()))?;
        let deadline = Instant::now() + self.timeout();
        let mut call = Some((router.clone(), request));
        let ask = move |_| {
            let (router, request) = call.take().expect("there is one core");
            move || async move {
                let channel = Channel::new(&router, LIMITS, &ReadBuffer::default());
                channel.expect("checked before").unary(method, &request, deadline).await
            }
        };
        let cores = Cores::start(CoresConfig { pin: false, ..CoresConfig::new(1) }, ask)
            .map_err(|error| ToolError::Machine(error.to_string()))?;
        let answer = cores.join().pop().expect("there is one core");
        answer.map_err(|CallError { status, .. }| ToolError::Status { router, status })
    }
}

/// The largest value that any node may hold fits.
const LIMITS: ChannelLimits =
    ChannelLimits { profile: &LINK, message_bytes_max: limits::batch_answer_bytes_max(limits::VALUE_BYTES_MAX) };

pub(super) fn print(mut output: impl Write, bytes: &[u8]) -> Result<(), ToolError> {
    match output.write_all(bytes).and_then(|()| output.flush()) {
        // `milena get | head`: whoever reads has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(ToolError::Output(error)),
        _ => Ok(()),
    }
}

pub(super) fn found_json(response: &GetResponse) -> Value {
    if !response.successful {
        return json!({ "found": false });
    }
    let mut found = json!({
        "found": true,
        "version": response.version,
        "tier": response.tier().as_str_name(),
        "ttl_ms": response.ttl_ms,
    });
    put_text(&mut found, "value", &response.value);
    if response.tier() == Tier::Unspecified {
        found["tier"] = Value::Null; // An old node does not say.
    }
    found
}

/// Text as `name`, other bytes as `name_base64`.
pub(super) fn put_text(json: &mut Value, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => json[name] = text.into(),
        Err(_) => json[format!("{name}_base64")] = BASE64_STANDARD.encode(bytes).into(),
    }
}

/// The share of a slot, where everybody's full one is 1.
fn share(slot: &Slot) -> f64 {
    f64::from(slot.weight) / f64::from(u32::MAX)
}

fn topology_json(topology: &TopologyResponse) -> Value {
    let slots = topology.slots.iter().enumerate().map(|(index, slot)| {
        json!({
            "slot": index,
            "state": slot.state().as_str_name(),
            "node_id": slot.node_id,
            "address": slot.address,
            "shard_addresses": slot.shard_addresses,
            "share": share(slot),
            "since_epoch": slot.since_epoch,
            "zone": slot.zone,
        })
    });
    json!({ "epoch": topology.epoch, "slots": slots.collect::<Vec<_>>() })
}

fn topology_table(topology: &TopologyResponse) -> String {
    let live = topology.slots.iter().filter(|slot| matches!(slot.state(), SlotState::Live | SlotState::Pinned)).count();
    let mut rows = vec![["slot", "state", "address", "cores", "share", "since", "node"].map(str::to_owned)];
    for (index, slot) in topology.slots.iter().enumerate() {
        let absent = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        rows.push([
            index.to_string(),
            slot.state().as_str_name().to_ascii_lowercase(),
            absent(&slot.address),
            slot.shard_addresses.len().to_string(),
            format!("{:.2}", share(slot)),
            slot.since_epoch.to_string(),
            absent(&slot.node_id),
        ]);
    }
    let widths: [usize; 7] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or_default());
    let mut table = format!("epoch {}, {live} of {} slots answer\n", topology.epoch, topology.slots.len());
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        table.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_found_value_is_json_text_where_it_is_text_and_base64_where_it_is_not() {
        let mut response = GetResponse {
            successful: true,
            value: Bytes::from_static(b"hello"),
            version: "v1".to_owned(),
            tier: Tier::Memory.into(),
            ttl_ms: 0,
        };
        assert_eq!(
            found_json(&response),
            json!({ "found": true, "value": "hello", "version": "v1", "tier": "MEMORY", "ttl_ms": 0 })
        );
        response.value = Bytes::from_static(b"\xff\x00");
        assert_eq!(found_json(&response)["value_base64"], "/wA=");
        assert_eq!(found_json(&GetResponse::default()), json!({ "found": false }));
    }

    #[test]
    fn a_topology_is_a_table_with_a_row_for_each_slot() {
        let topology = TopologyResponse {
            epoch: 7,
            slots: vec![
                Slot {
                    node_id: "aa".to_owned(),
                    address: "http://127.0.0.1:50051".to_owned(),
                    shard_addresses: vec!["http://127.0.0.1:40001".to_owned()],
                    weight: u32::MAX,
                    state: SlotState::Live.into(),
                    since_epoch: 3,
                    zone: String::new(),
                },
                Slot::default(),
            ],
        };
        assert_eq!(
            topology_table(&topology),
            "epoch 7, 1 of 2 slots answer\n\
             slot  state  address                 cores  share  since  node\n\
             0     live   http://127.0.0.1:50051  1      1.00   3      aa\n\
             1     empty  -                       0      0.00   0      -\n"
        );
        assert_eq!(topology_json(&topology)["slots"][0]["state"], "LIVE");
    }
}
