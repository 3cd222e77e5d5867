import type { NextConfig } from "next";

const config: NextConfig = {
  // Who may load /_next: previews at E2B, and of an engine on this machine.
  allowedDevOrigins: ["*.e2b.app", "*.e2b.dev", "*.localhost", "localhost", "127.0.0.1"],
  devIndicators: false,
};

export default config;
