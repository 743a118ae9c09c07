# One build stage, three small final stages: docker build --target proxy | control-plane | demo-app
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --locked --release \
      --bin gilmok-proxy --bin gilmok-control-plane --bin gilmok-demo-app \
 && mkdir -p /out/bin \
 && cp target/release/gilmok-proxy target/release/gilmok-control-plane target/release/gilmok-demo-app /out/bin/

# Not root, no login, and a folder for what has to last. The ids are named by number, so that
# `runAsNonRoot` rules can be checked without looking into the image.
FROM debian:bookworm-slim AS base
RUN useradd --uid 65532 --user-group --no-create-home --home-dir /nonexistent \
      --shell /usr/sbin/nologin gilmok \
 && install -d -o gilmok -g gilmok -m 0750 /var/lib/gilmok && install -d /etc/gilmok
USER 65532:65532
WORKDIR /var/lib/gilmok
STOPSIGNAL SIGTERM
# Debian's authorities, for services that speak TLS with a certificate of one of them: the slim image has none.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt

# Serves as /etc/gilmok/proxy.toml says. Ready means: listeners bound and a snapshot in force.
FROM base AS proxy
COPY --from=build /out/bin/gilmok-proxy /usr/local/bin/gilmok-proxy
ENV GILMOK_CONFIG=/etc/gilmok/proxy.toml GILMOK_STATE_DIR=/var/lib/gilmok
VOLUME /var/lib/gilmok
EXPOSE 15001 15006 15090
HEALTHCHECK --interval=5s --timeout=2s --start-period=10s CMD ["bash", "-c", \
  "exec 3<>/dev/tcp/127.0.0.1/15000 && printf 'GET /readyz HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3 && read -r _ code _ <&3 && [ \"$code\" = 200 ]"]
ENTRYPOINT ["/usr/local/bin/gilmok-proxy"]

# Keeps its store in /var/lib/gilmok. Callers from outside the container need the token of GILMOK_TOKEN_FILE.
FROM base AS control-plane
COPY --from=build /out/bin/gilmok-control-plane /usr/local/bin/gilmok-control-plane
ENV GILMOK_LISTEN=0.0.0.0:7070 GILMOK_STORE=/var/lib/gilmok
VOLUME /var/lib/gilmok
EXPOSE 7070
HEALTHCHECK --interval=5s --timeout=2s --start-period=10s CMD ["bash", "-c", \
  "exec 3<>/dev/tcp/127.0.0.1/7070 && printf 'GET /readyz HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3 && read -r _ code _ <&3 && [ \"$code\" = 200 ]"]
ENTRYPOINT ["/usr/local/bin/gilmok-control-plane"]

FROM base AS demo-app
COPY --from=build /out/bin/gilmok-demo-app /usr/local/bin/gilmok-demo-app
ENV GILMOK_DEMO_LISTEN=0.0.0.0:8080
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=2s --start-period=5s CMD ["bash", "-c", \
  "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /healthz HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3 && read -r _ code _ <&3 && [ \"$code\" = 200 ]"]
ENTRYPOINT ["/usr/local/bin/gilmok-demo-app"]
