//! Server reflection: how `grpcurl`, `buf curl` and their like learn our messages from the running server.
//!
//! ```text
//!   list_services                              ─▶ the services that this server offers
//!   file_containing_symbol  "cache_server.Cache.Get"  ─▶ the file that declares it, as a FileDescriptorProto
//!   file_by_filename        "milena/cache_server.proto" ─▶ that file
//!   anything about extensions                  ─▶ there are none
//! ```
//! Specification: grpc/grpc, doc/server-reflection.md. A stream of questions, one answer each. Clients differ in which of
//! `v1` and `v1alpha` they speak; the messages of both have the same bytes, so one answer does for both.

use std::collections::HashMap;

use bytes::Bytes;
use milena_proto::grpc_reflection_v1::{
    ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse, ServerReflectionRequest,
    ServerReflectionResponse, ServiceResponse, server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
};
use prost::{DecodeError, Message};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

use super::status::Code;

/// What there is to know about the services of this server. Made once for each core; answers from tables.
#[derive(Debug)]
pub struct Reflection {
    /// Files as they are sent.
    files: Vec<Bytes>,
    file_of_name: HashMap<String, usize>,
    /// Fully qualified names of services, methods, messages, their fields, and enums.
    file_of_symbol: HashMap<String, usize>,
    services: Vec<String>,
}

/// Offered on every port, beside the services of the program.
const ALWAYS_OFFERED: [&str; 3] =
    ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

impl Reflection {
    /// Knows every file of `descriptors`, a serialised `google.protobuf.FileDescriptorSet`
    /// ([`milena_proto::generated::DESCRIPTORS`]), and lists `services` (full names) beside health and reflection.
    ///
    /// # Errors
    /// When `descriptors` is not such a set.
    ///
    /// # Panics
    /// When a service is declared in none of the files: nobody could ask for what was listed.
    pub fn new(descriptors: &[u8], services: &[&str]) -> Result<Self, DecodeError> {
        let set = FileDescriptorSet::decode(descriptors)?;
        let services = services.iter().chain(&ALWAYS_OFFERED).map(|name| (*name).to_owned()).collect();
        let (file_of_name, file_of_symbol) = Default::default();
        let mut reflection = Self { files: Vec::new(), file_of_name, file_of_symbol, services };
        set.file.iter().for_each(|file| reflection.add(file));
        for service in &reflection.services {
            assert!(reflection.file_of_symbol.contains_key(service), "{service} is declared nowhere");
        }
        Ok(reflection)
    }

    fn add(&mut self, file: &FileDescriptorProto) {
        let package = file.package();
        self.file_of_name.insert(file.name().to_owned(), self.files.len());
        for service in &file.service {
            let name = self.add_symbol(package, service.name());
            service.method.iter().for_each(|method| drop(self.add_symbol(&name, method.name())));
        }
        file.message_type.iter().for_each(|message| self.add_message(package, message));
        file.enum_type.iter().for_each(|enumeration| self.add_enum(package, enumeration));
        self.files.push(file.encode_to_vec().into());
    }

    fn add_message(&mut self, scope: &str, message: &DescriptorProto) {
        let name = self.add_symbol(scope, message.name());
        message.field.iter().for_each(|field| drop(self.add_symbol(&name, field.name())));
        message.nested_type.iter().for_each(|nested| self.add_message(&name, nested));
        message.enum_type.iter().for_each(|enumeration| self.add_enum(&name, enumeration));
    }

    fn add_enum(&mut self, scope: &str, enumeration: &EnumDescriptorProto) {
        self.add_symbol(scope, enumeration.name());
        // As in C++, values live beside their enum and not in it.
        enumeration.value.iter().for_each(|value| drop(self.add_symbol(scope, value.name())));
    }

    /// Returns the full name.
    fn add_symbol(&mut self, scope: &str, name: &str) -> String {
        let full = if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") };
        self.file_of_symbol.insert(full.clone(), self.files.len());
        full
    }

    /// Answers one message of the stream with one message.
    #[must_use]
    pub fn answer(&self, request: &[u8]) -> Bytes {
        let response = match ServerReflectionRequest::decode(request) {
            Ok(request) => ServerReflectionResponse {
                valid_host: request.host.clone(),
                message_response: Some(self.find(request.message_request.as_ref())),
                original_request: Some(request),
            },
            Err(error) => ServerReflectionResponse {
                message_response: Some(failed(Code::InvalidArgument, &error.to_string())),
                ..Default::default()
            },
        };
        response.encode_to_vec().into()
    }

    fn find(&self, question: Option<&MessageRequest>) -> MessageResponse {
        match question {
            Some(MessageRequest::ListServices(_)) => {
                let service = self.services.iter().map(|name| ServiceResponse { name: name.clone() }).collect();
                MessageResponse::ListServicesResponse(ListServiceResponse { service })
            }
            Some(MessageRequest::FileByFilename(name)) => self.file(self.file_of_name.get(name), "file"),
            Some(MessageRequest::FileContainingSymbol(symbol)) => {
                // Some clients write names as descriptors do, with a dot in front.
                let symbol = symbol.strip_prefix('.').unwrap_or(symbol);
                self.file(self.file_of_symbol.get(symbol), "symbol")
            }
            Some(MessageRequest::AllExtensionNumbersOfType(name)) if self.file_of_symbol.contains_key(name) => {
                MessageResponse::AllExtensionNumbersResponse(ExtensionNumberResponse {
                    base_type_name: name.clone(),
                    extension_number: Vec::new(),
                })
            }
            Some(MessageRequest::AllExtensionNumbersOfType(_)) => failed(Code::NotFound, "this type is not here"),
            Some(MessageRequest::FileContainingExtension(_)) => failed(Code::NotFound, "there are no extensions"),
            None => failed(Code::InvalidArgument, "the request asks nothing"),
        }
    }

    fn file(&self, index: Option<&usize>, what: &str) -> MessageResponse {
        match index {
            Some(index) => MessageResponse::FileDescriptorResponse(FileDescriptorResponse {
                file_descriptor_proto: vec![self.files[*index].clone()],
            }),
            None => failed(Code::NotFound, &format!("this {what} is not here")),
        }
    }
}

fn failed(code: Code, message: &str) -> MessageResponse {
    MessageResponse::ErrorResponse(ErrorResponse { error_code: code as i32, error_message: message.to_owned() })
}

#[cfg(test)]
mod tests {
    use milena_proto::{
        generated::DESCRIPTORS,
        grpc_reflection_v1::ExtensionRequest,
        method::{CACHE_GET, HEALTH_CHECK, REFLECTION_PATHS},
    };

    use super::*;

    const CACHE: &str = "cache_server.Cache";

    fn ask(question: MessageRequest) -> MessageResponse {
        let reflection = Reflection::new(DESCRIPTORS, &[CACHE]).unwrap();
        let request = ServerReflectionRequest { host: "h".into(), message_request: Some(question) };
        let answer = ServerReflectionResponse::decode(reflection.answer(&request.encode_to_vec())).unwrap();
        assert_eq!(answer.valid_host, "h");
        assert_eq!(answer.original_request, Some(request));
        answer.message_response.unwrap()
    }

    fn file_name(answer: MessageResponse) -> String {
        let MessageResponse::FileDescriptorResponse(answer) = answer else { panic!("{answer:?}") };
        let [file] = answer.file_descriptor_proto.try_into().unwrap();
        FileDescriptorProto::decode(file).unwrap().name().to_owned()
    }

    fn code(answer: MessageResponse) -> i32 {
        let MessageResponse::ErrorResponse(error) = answer else { panic!("{answer:?}") };
        error.error_code
    }

    #[test]
    fn what_is_offered_is_listed_and_nothing_else() {
        let MessageResponse::ListServicesResponse(answer) = ask(MessageRequest::ListServices(String::new())) else {
            panic!();
        };
        let names: Vec<_> = answer.service.into_iter().map(|service| service.name).collect();
        assert_eq!(
            names,
            [
                CACHE,
                "grpc.health.v1.Health",
                "grpc.reflection.v1.ServerReflection",
                "grpc.reflection.v1alpha.ServerReflection"
            ]
        );
    }

    #[test]
    fn every_kind_of_symbol_leads_to_its_file() {
        for (symbol, file) in [
            ("cache_server.Cache", "milena/cache_server.proto"),
            ("cache_server.Cache.Get", "milena/cache_server.proto"),
            (".cache_server.GetRequest", "milena/cache_server.proto"),
            ("cache_server.GetRequest.key", "milena/cache_server.proto"),
            ("cache_server.Tier", "milena/cache_server.proto"),
            ("grpc.health.v1.HealthCheckResponse.ServingStatus", "grpc/health/v1/health.proto"),
            ("grpc.reflection.v1alpha.ServerReflection", "grpc/reflection/v1alpha/reflection.proto"),
        ] {
            assert_eq!(file_name(ask(MessageRequest::FileContainingSymbol(symbol.into()))), file, "{symbol}");
        }
    }

    #[test]
    fn a_file_is_found_by_its_name_and_needs_no_other() {
        let reflection = Reflection::new(DESCRIPTORS, &[CACHE]).unwrap();
        for name in reflection.file_of_name.keys() {
            assert_eq!(file_name(ask(MessageRequest::FileByFilename(name.clone()))), *name);
        }
        for file in &reflection.files {
            // Otherwise the files that it imports would have to be there too.
            for import in FileDescriptorProto::decode(&**file).unwrap().dependency {
                assert!(reflection.file_of_name.contains_key(&import), "{import}");
            }
        }
    }

    #[test]
    fn what_is_not_here_is_not_found() {
        for question in [
            MessageRequest::FileByFilename("nothing.proto".into()),
            MessageRequest::FileContainingSymbol("cache_server.Nothing".into()),
            MessageRequest::FileContainingSymbol(String::new()),
            MessageRequest::AllExtensionNumbersOfType("nothing".into()),
            MessageRequest::FileContainingExtension(ExtensionRequest::default()),
        ] {
            assert_eq!(code(ask(question.clone())), Code::NotFound as i32, "{question:?}");
        }
    }

    #[test]
    fn messages_have_no_extensions() {
        let answer = ask(MessageRequest::AllExtensionNumbersOfType("cache_server.GetRequest".into()));
        let MessageResponse::AllExtensionNumbersResponse(answer) = answer else { panic!("{answer:?}") };
        assert!(answer.extension_number.is_empty());
    }

    #[test]
    fn a_message_that_makes_no_sense_is_answered_with_an_error() {
        let reflection = Reflection::new(DESCRIPTORS, &[CACHE]).unwrap();
        for request in [&b""[..], b"\xff", b"\x0a\x05a"] {
            let answer = ServerReflectionResponse::decode(reflection.answer(request)).unwrap();
            assert_eq!(code(answer.message_response.unwrap()), Code::InvalidArgument as i32, "{request:?}");
        }
        assert!(Reflection::new(b"\xff", &[]).is_err());
    }

    #[test]
    fn every_path_that_is_served_is_described() {
        let reflection = Reflection::new(DESCRIPTORS, &[CACHE]).unwrap();
        for path in [CACHE_GET.path, HEALTH_CHECK.path].into_iter().chain(REFLECTION_PATHS) {
            let symbol = path.trim_start_matches('/').replace('/', ".");
            assert!(reflection.file_of_symbol.contains_key(&symbol), "{symbol}");
        }
    }
}
