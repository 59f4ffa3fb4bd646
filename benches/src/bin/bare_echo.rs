//! What the HTTP framework alone does on a machine: answers every `POST /api/v1/logs` with its own body.
//! A yardstick for the server's figures, which `benches/http-load.sh echo` measures in the same way.

use poem::http::StatusCode;
use poem::listener::TcpListener;
use poem::{IntoResponse, Response, Route, Server, handler, post};

#[handler]
fn echo(body: Vec<u8>) -> Response {
    body.with_content_type("application/json")
        .with_status(StatusCode::CREATED)
        .into_response()
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1);
    let address = address.unwrap_or_else(|| "127.0.0.1:8000".to_owned());
    Server::new(TcpListener::bind(address))
        .run(Route::new().at("/api/v1/logs", post(echo)))
        .await
}
