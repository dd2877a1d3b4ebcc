# Coffer's image: the program and what it calls, on Debian 13. `--target dev` adds what evaluation needs, such as dev-kbs.
ARG RUST_VERSION=1.95

FROM docker.io/library/rust:${RUST_VERSION}-trixie AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends clang libclang-dev libcryptsetup-dev libtss2-dev pkg-config \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --locked --profile dist --bin coffer \
 && install -D target/dist/coffer /out/coffer

FROM build AS build-dev
RUN cargo build --locked --profile dist --bin coffer --features dev \
 && install -D target/dist/coffer /out/coffer

# These packages want udev, systemd and Python for parts that Coffer does not use, and the image would be three times as
# large: only what it calls is taken. What that links to comes with the packages of the runtime.
FROM docker.io/library/debian:trixie-slim AS files
RUN apt-get update \
 && cd /tmp \
 && apt-get download libtss2-esys-3.0.2-0t64 libtss2-mu-4.0.1-0t64 libtss2-sys1t64 libtss2-tcti-device0t64 \
        libtss2-tctildr0t64 xfsprogs \
 && for package in *.deb; do dpkg-deb --extract "$package" /files; done \
 && mkdir /wanted \
 && cd /files \
 && cp --archive --parents usr/lib/*/libtss2-*.so.* usr/sbin/mkfs.xfs usr/sbin/xfs_repair /wanted

FROM docker.io/library/debian:trixie-slim AS runtime
ARG DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
 && apt-get install --yes --no-install-recommends e2fsprogs libcryptsetup12 libinih1 liburcu8t64 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY --from=files /wanted/ /
LABEL org.opencontainers.image.title="Coffer" \
      org.opencontainers.image.description="A Kubernetes CSI driver for encrypted volumes whose keys are released only to attested nodes" \
      org.opencontainers.image.licenses="Apache-2.0"
# Nobody in particular. The chart makes the node's pods root: they make devices and mounts.
USER 65532:65532
ENTRYPOINT ["/usr/bin/coffer"]

FROM runtime AS dev
COPY --from=build-dev /out/coffer /usr/bin/coffer

FROM runtime AS coffer
COPY --from=build /out/coffer /usr/bin/coffer
