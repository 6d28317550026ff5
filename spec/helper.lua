-- Loaded before any spec. Busted gives each file its own package.loaded, but LuaJIT's C types stay:
-- what declares them is loaded here, once, for all files.
require "lumuon"
