//! The health service, `grpc.health.v1.Health`: what load balancers and orchestrators ask before they send calls.
//!
//! ```text
//!   ""                     the whole server            Check   its state, or NOT_FOUND
//!   "cache_server.Cache"   one service                 Watch   its state at once, then every change; for a
//!                                                              service that is not here: SERVICE_UNKNOWN, and stay
//! ```
//! Specification: grpc/grpc, doc/health-checking.md. Each core has its own copy, so nothing is shared.

use std::{fmt, rc::Rc};

use bytes::Bytes;
use milena_proto::grpc_health_v1::{HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus};
use prost::Message;

use super::{
    status::{Code, Status},
    watch,
};

/// What this core says about its services. A clone is another name for the same state.
#[derive(Clone)]
pub struct Health {
    services: Rc<Services>,
}

struct Services {
    known: Vec<(&'static str, watch::Sender)>,
    unknown: watch::Sender,
}

/// The name that stands for the whole server.
pub const WHOLE_SERVER: &str = "";

impl Health {
    /// Knows the whole server and `services` (full names, for example `cache_server.Cache`). None of them serves yet.
    #[must_use]
    pub fn new(services: &[&'static str]) -> Self {
        let names = [WHOLE_SERVER].iter().chain(services);
        let known = names.map(|name| (*name, watch::channel(answer(ServingStatus::NotServing)).0)).collect();
        let (unknown, _) = watch::channel(answer(ServingStatus::ServiceUnknown));
        Self { services: Rc::new(Services { known, unknown }) }
    }

    /// Says of the whole server and of every service whether calls are wanted. Those who watch learn of a change.
    pub fn set_all(&self, is_serving: bool) {
        for (name, _) in &self.services.known {
            self.set(name, is_serving);
        }
    }

    /// Says of one service, or of [`WHOLE_SERVER`], whether calls are wanted.
    ///
    /// # Panics
    /// When `service` is none of those that [`Health::new`] was given.
    pub fn set(&self, service: &str, is_serving: bool) {
        let sender = self.services.find(service).expect("a service that was named at the start");
        let state = answer(if is_serving { ServingStatus::Serving } else { ServingStatus::NotServing });
        if sender.latest() != state {
            sender.send(state);
        }
    }

    /// Answers a Check: one message in, one message out.
    ///
    /// # Errors
    /// NOT_FOUND for a service that is not here; INTERNAL for bytes that are not a request.
    pub fn check(&self, request: &[u8]) -> Result<Bytes, Status> {
        let service = decode(request)?;
        let known = self.services.find(&service);
        // The name is the caller's own; it is not repeated, because it may be of any length.
        known.map(watch::Sender::latest).ok_or_else(|| Status::new(Code::NotFound, "this service is not here"))
    }

    /// Answers a Watch with a stream of messages that stays open as long as this core serves.
    ///
    /// # Errors
    /// INTERNAL for bytes that are not a request.
    pub fn watch(&self, request: &[u8]) -> Result<watch::Receiver, Status> {
        let service = decode(request)?;
        Ok(self.services.find(&service).unwrap_or(&self.services.unknown).subscribe())
    }
}

impl Services {
    fn find(&self, service: &str) -> Option<&watch::Sender> {
        self.known.iter().find(|(name, _)| *name == service).map(|(_, sender)| sender)
    }
}

fn decode(request: &[u8]) -> Result<String, Status> {
    let request = HealthCheckRequest::decode(request)
        .map_err(|error| Status::new(Code::Internal, format!("not a HealthCheckRequest: {error}")))?;
    Ok(request.service)
}

fn answer(status: ServingStatus) -> Bytes {
    HealthCheckResponse { status: status.into() }.encode_to_vec().into()
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.services.known.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll, Waker};

    use super::*;

    const CACHE: &str = "cache_server.Cache";

    fn ask(service: &str) -> Vec<u8> {
        HealthCheckRequest { service: service.to_owned() }.encode_to_vec()
    }

    fn state(message: &Bytes) -> ServingStatus {
        HealthCheckResponse::decode(&**message).unwrap().status()
    }

    fn checked(health: &Health, service: &str) -> Result<ServingStatus, Code> {
        health.check(&ask(service)).map(|message| state(&message)).map_err(|status| status.code)
    }

    fn next(receiver: &mut watch::Receiver) -> Poll<Option<ServingStatus>> {
        receiver.poll_changed(&mut Context::from_waker(Waker::noop())).map(|value| value.as_ref().map(state))
    }

    #[test]
    fn a_check_tells_the_state_of_now() {
        let health = Health::new(&[CACHE]);
        assert_eq!(checked(&health, ""), Ok(ServingStatus::NotServing));
        assert_eq!(checked(&health, CACHE), Ok(ServingStatus::NotServing));
        health.set_all(true);
        assert_eq!(checked(&health, ""), Ok(ServingStatus::Serving));
        assert_eq!(checked(&health.clone(), CACHE), Ok(ServingStatus::Serving));
        health.set(CACHE, false);
        assert_eq!(checked(&health, ""), Ok(ServingStatus::Serving));
        assert_eq!(checked(&health, CACHE), Ok(ServingStatus::NotServing));
    }

    #[test]
    fn a_check_of_an_unknown_service_is_not_found() {
        assert_eq!(checked(&Health::new(&[CACHE]), "cache_server.Cach"), Err(Code::NotFound));
    }

    #[test]
    fn an_empty_message_asks_for_the_whole_server() {
        let health = Health::new(&[]);
        health.set_all(true);
        assert_eq!(state(&health.check(b"").unwrap()), ServingStatus::Serving);
    }

    #[test]
    fn bytes_that_are_no_request_are_internal() {
        let health = Health::new(&[]);
        assert_eq!(health.check(b"\x0a\xff").unwrap_err().code, Code::Internal);
        assert_eq!(health.watch(b"\x0a\xff").unwrap_err().code, Code::Internal);
    }

    #[test]
    fn a_watch_sends_the_state_at_once_and_then_every_change_but_no_repetition() {
        let health = Health::new(&[CACHE]);
        let mut watch = health.watch(&ask(CACHE)).unwrap();
        assert_eq!(next(&mut watch), Poll::Ready(Some(ServingStatus::NotServing)));
        assert_eq!(next(&mut watch), Poll::Pending);
        health.set_all(false);
        assert_eq!(next(&mut watch), Poll::Pending);
        health.set_all(true);
        assert_eq!(next(&mut watch), Poll::Ready(Some(ServingStatus::Serving)));
        health.set(WHOLE_SERVER, false);
        assert_eq!(next(&mut watch), Poll::Pending);
        drop(health);
        assert_eq!(next(&mut watch), Poll::Ready(None));
    }

    #[test]
    fn a_watch_of_an_unknown_service_says_so_and_stays_open() {
        let health = Health::new(&[CACHE]);
        let mut watch = health.watch(&ask("nobody")).unwrap();
        assert_eq!(next(&mut watch), Poll::Ready(Some(ServingStatus::ServiceUnknown)));
        health.set_all(true);
        assert_eq!(next(&mut watch), Poll::Pending);
    }
}
