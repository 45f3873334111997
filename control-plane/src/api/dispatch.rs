//! The one way in.
//!
//! ```text
//! head names a key → body (bounded) → signature → form → Version, Action → [`registry`]:
//!     typed request → resolve → authorize → DryRun → ClientToken → handle → encode
//! ```
//!
//! A long list is handled and encoded beside the runtime: see [`lists`](super::lists).
//!
//! The signature is checked before anything of the body is read, so that
//! whoever has no key reaches as little code as can be. A handler needs a
//! [`Ctx`](super::Ctx), which needs an [`Authorized`](crate::auth::Authorized): none is
//! reachable without its authorization.
//!
//! [`registry`]: super::registry

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderMap, Method, Request, Response, StatusCode, header},
};
use jiff::Timestamp;

use super::{
    ApiError, Cloud,
    lists::Lists,
    registry::{Answered, Call, Service, services, signed_for},
    wire::{Foreign, Form, Protocol},
};
use crate::{
    auth::{
        self,
        credentials::CredentialStore,
        sigv4::{self, AuthError, Incoming},
    },
    bootstrap,
    model::Scope,
};

/// All that a request needs.
pub struct Dispatch {
    cloud: Cloud,
    credentials: CredentialStore,
    services: Vec<Service>,
    lists: Arc<Lists>,
}

/// A request whose body has been read.
pub(super) struct Received<'a> {
    pub method: &'a Method,
    pub path: &'a str,
    pub query: &'a str,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
    pub connection: &'a dyn Connection,
}

/// What the connection that a request came on is asked about it.
pub(super) trait Connection: Sync {
    /// The signature is good. Nothing has been done yet.
    ///
    /// # Errors
    /// When too many requests are under way for this one to be carried out.
    fn verified(&self) -> Result<(), ApiError>;

    /// An answer of so many bytes has been made for this account. One that can be
    /// asked for again is refused sooner than others are cut short for it; where
    /// something was done, its answer always has room.
    ///
    /// # Errors
    /// When there is no room for it beside those that wait to be read.
    fn make_room(&self, account: &str, bytes: usize, again: bool) -> Result<(), ApiError>;
}

impl Dispatch {
    /// The way into this cloud.
    pub fn new(cloud: Cloud, credentials: CredentialStore) -> Self {
        Self {
            cloud,
            credentials,
            services: services(),
            lists: Arc::default(),
        }
    }

    /// How many hosts are simulated, where they are.
    pub(super) fn simulated_hosts(&self) -> Option<u32> {
        self.cloud.config.simulated.map(|simulated| simulated.hosts)
    }

    /// Looks at the head alone: whether it names a key that there is. The refusal
    /// is what the whole request would get.
    pub(super) fn claim(
        &self,
        received: &Received<'_>,
        request_id: &str,
    ) -> Result<(), Box<Response<Body>>> {
        auth::claim(&received.incoming(), &self.credentials).map_err(|error| {
            let (service, foreign) = self.listener(received);
            Box::new(refuse(service, foreign, error.into(), request_id))
        })
    }

    /// How an error is told: in the protocol of the service that the caller says it
    /// wants, which decides nothing else before the signature is verified; or in
    /// that of the request, when there is no such service.
    fn listener(&self, received: &Received<'_>) -> (&Service, Option<Foreign>) {
        let claimed = sigv4::parse(&received.incoming()).ok();
        let Some(claim) = claimed else {
            return (&self.services[0], Foreign::of(received.headers));
        };
        if let Some(service) = signed_for(&self.services, &claim.service).next() {
            return (service, None);
        }
        // Of the services that aren't there, all that send forms speak `query`.
        let mut services = self.services.iter();
        let query = services.find(|service| service.protocol == Protocol::Query);
        (
            query.unwrap_or(&self.services[0]),
            Foreign::of(received.headers),
        )
    }

    /// Answers one request.
    pub(super) async fn answer(&self, received: &Received<'_>, request_id: &str) -> Response<Body> {
        let (mut service, foreign) = self.listener(received);
        match self.carry_out(received, request_id, &mut service).await {
            Ok(body) => respond(service.protocol.content_type(), StatusCode::OK, body),
            Err(error) => refuse(service, foreign, error, request_id),
        }
    }

    /// Leaves in `service` the one that the request turned out to be for.
    async fn carry_out<'s>(
        &'s self,
        received: &Received<'_>,
        request_id: &str,
        service: &mut &'s Service,
    ) -> Result<String, ApiError> {
        let now = Timestamp::now();
        let incoming = received.incoming();
        let regions = self.cloud.config.region_names();
        let (caller, claim) = auth::authenticate(&incoming, &self.credentials, &regions, now)?;
        received.connection.verified()?;
        let mut signed_for = signed_for(&self.services, &claim.service).peekable();
        let Some(first) = signed_for.peek() else {
            let names: Vec<&str> = self.services.iter().map(|s| s.signing_name).collect();
            return Err(AuthError::Scope(format!(
                "Credential should be scoped to a service that Hearth has: {}",
                names.join(", ")
            ))
            .into());
        };
        *service = first;
        let mut form = received.form(claim.is_presigned())?;
        let action = form.take("Action")?;
        let version = form.take("Version")?;
        let action = action.ok_or_else(|| {
            ApiError::new(
                "MissingAction",
                "The request must contain the parameter Action",
            )
        })?;
        let version = version.ok_or_else(|| ApiError::missing("Version"))?;
        *service = signed_for.find(|s| s.version == version).ok_or_else(|| {
            let version = super::wire::quoted(&version);
            ApiError::new(
                "NoSuchVersion",
                format!(
                    "The version {version} is not valid for this web service: it has {}",
                    service.version
                ),
            )
        })?;
        let action = service.find(&action)?;
        // An account that has just been made has its default VPC, too.
        let scope = Scope::new(caller.account.clone(), caller.region.clone());
        bootstrap::ensure_default_vpc(&self.cloud.db, &self.cloud.config, &scope).await?;
        let call = Call {
            cloud: self.cloud.clone(),
            caller,
            request_id: request_id.to_owned(),
            now,
            form,
            lists: Arc::clone(&self.lists),
        };
        let account = call.caller.account.clone();
        let Answered { body, again } = action.call(service, call).await?;
        let connection = received.connection;
        connection.make_room(&account, body.len(), again)?;
        Ok(body)
    }
}

impl Received<'_> {
    fn incoming(&self) -> Incoming<'_> {
        Incoming {
            method: self.method,
            path: self.path,
            query: self.query,
            headers: self.headers,
            body: self.body,
        }
    }

    /// The parameters: of a POST in the body, of a GET in the query.
    fn form(&self, presigned: bool) -> Result<Form, ApiError> {
        if self.path != "/" {
            let message = "The path of every request is /";
            return Err(ApiError::new("InvalidRequest", message).with_status(404));
        }
        // As the signature read it, so that nothing else is done than what was signed.
        let mut query = Form::from_pairs(sigv4::pairs(self.query))?;
        if presigned {
            for name in sigv4::PRESIGNED {
                query.take(name)?;
            }
        }
        if self.method == Method::GET {
            if !self.body.is_empty() {
                return Err(ApiError::new("InvalidRequest", "A GET request has no body"));
            }
            return Ok(query);
        }
        if self.method != Method::POST {
            let message = "Requests are made with POST or GET";
            return Err(ApiError::new("InvalidRequest", message).with_status(405));
        }
        if query != Form::default() {
            let message = "The parameters of a POST request are in its body";
            return Err(ApiError::new("InvalidRequest", message));
        }
        let kind = self.headers.get(header::CONTENT_TYPE);
        let kind = kind.and_then(|k| k.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            let message = "The body of a request is application/x-www-form-urlencoded";
            return Err(ApiError::new("InvalidRequest", message).with_status(415));
        }
        Ok(Form::parse(self.body)?)
    }
}

fn refuse(
    service: &Service,
    foreign: Option<Foreign>,
    error: ApiError,
    request_id: &str,
) -> Response<Body> {
    let error = service.errors.translate(error);
    if let Some(internal) = &error.internal {
        tracing::error!(request_id, "{internal:#}");
    } else {
        tracing::debug!(request_id, code = %error.code, message = error.message, "refused");
    }
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Some(foreign) = foreign {
        let body = foreign.error(&error.code, &error.message);
        return respond(foreign.content_type(), status, body);
    }
    let body = service.protocol.error(
        service.namespace,
        request_id,
        &error.code,
        &error.message,
        error.status < 500,
    );
    respond(service.protocol.content_type(), status, body)
}

fn respond(
    content_type: &'static str,
    status: StatusCode,
    body: impl Into<Body>,
) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let content_type = header::HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

/// The answer to a request whose body could not be read: nothing of it was
/// verified.
pub(super) fn unreadable(
    status: StatusCode,
    code: &str,
    message: &str,
    request_id: &str,
) -> Response<Body> {
    let protocol = Protocol::Ec2;
    let body = protocol.error("", request_id, code, message, true);
    respond(protocol.content_type(), status, body)
}

/// The parts of an HTTP request that the dispatch reads.
pub(super) fn query_of<B>(request: &Request<B>) -> &str {
    request.uri().query().unwrap_or_default()
}
