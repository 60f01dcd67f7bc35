//! The tower layer that reads the class of a request's work: gRPC metadata `pontoon-class`, `regular` or `elastic`.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::{HeaderMap, Request, Response};
use pontoon_flow::Class;
use pontoon_kv::outcome;
use tonic::Status;
use tower::{Layer, Service};

/// Names the class; without it work is regular.
const METADATA: &str = "pontoon-class";

/// Runs each request as work of the class that it names.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkClassLayer;

impl<S> Layer<S> for WorkClassLayer {
    type Service = WorkClass<S>;
    fn layer(&self, inner: S) -> WorkClass<S> {
        WorkClass { inner }
    }
}

/// See [`WorkClassLayer`].
#[derive(Clone, Debug)]
pub(crate) struct WorkClass<S> {
    inner: S,
}

impl<S, Q, B> Service<Request<Q>> for WorkClass<S>
where
    S: Service<Request<Q>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Default + Send + 'static,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        match class(request.headers()) {
            Ok(Class::Regular) => Box::pin(self.inner.call(request)),
            Ok(class) => Box::pin(pontoon_node::with_class(class, self.inner.call(request))),
            Err(status) => Box::pin(std::future::ready(Ok(status.into_http()))),
        }
    }
}

fn class(headers: &HeaderMap) -> Result<Class, Status> {
    let Some(value) = headers.get(METADATA) else { return Ok(Class::Regular) };
    value.to_str().ok().and_then(Class::named).ok_or_else(|| {
        let words =
            format!("pontoon: the metadata {METADATA} is {value:?}; a class of work is regular or elastic");
        outcome::mark(Status::invalid_argument(words), outcome::NOT_EXECUTED)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metadata_names_a_class_or_is_refused() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(METADATA, value.parse().expect("a header value"));
            class(&headers)
        };
        assert_eq!(class(&HeaderMap::new()).expect("no metadata"), Class::Regular);
        assert_eq!(of("regular").expect("a class"), Class::Regular);
        assert_eq!(of("elastic").expect("a class"), Class::Elastic);
        for bad in ["", "Elastic", "background"] {
            let refused = of(bad).expect_err("no class");
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
            assert!(refused.message().contains("regular or elastic"), "{refused}");
        }
    }
}
