"""Where rows come from: files, folders, the hub, memory. A source gives numbered rows and a fingerprint."""
