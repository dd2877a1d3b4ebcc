#!/bin/bash
exec containerd --config /share/node/containerd.toml
