// SPDX-License-Identifier: GPL-2.0-or-later
// A web server that answers each request with how many it has had: on port 80, connections are kept.
let requests = 0
const server = require("http").createServer((_request, response) => response.end(String(++requests)))
server.keepAliveTimeout = 0
server.listen(80)
