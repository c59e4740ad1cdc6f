-- wrk: POST the given files in turn. Arguments after "--": header lines ("Name: value"), then file names.
-- Prints one line of JSON: requests, seconds, bytes, errors by kind, latency percentiles in ms.

local requests, turn = {}, 0

function init(args)
  local headers, files = {}, {}
  for _, word in ipairs(args) do
    local name, value = word:match("^([%w-]+): (.*)$")
    if name then headers[name] = value else files[#files + 1] = word end
  end
  for _, name in ipairs(files) do
    local file = assert(io.open(name, "rb"))
    requests[#requests + 1] = wrk.format("POST", nil, headers, file:read("*a"))
    file:close()
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "bytes": %d, "connect": %d, "read": %d, "write": %d, "status": %d, ' ..
    '"timeout": %d, "p50": %.3f, "p90": %.3f, "p99": %.3f, "max": %.3f}\n',
    summary.requests, summary.duration / 1e6, summary.bytes, errors.connect, errors.read, errors.write,
    errors.status, errors.timeout, latency:percentile(50) / 1e3, latency:percentile(90) / 1e3,
    latency:percentile(99) / 1e3, latency.max / 1e3))
end
