# Debian packages.  deps-check is what every compilation waits for: it looks
# for one file or program of each package and calls `deps` when one is missing.
PACKAGES	= gcc libc6-dev libdnnl-dev libarchive-dev libsqlite3-dev \
		  libcsv-dev libjansson-dev libjpeg62-turbo-dev libpng-dev \
		  libwebp-dev libpcre2-dev libutf8proc-dev zlib1g-dev \
		  sqlite3 mandoc perl
HEADERS		= dnnl.h archive.h sqlite3.h csv.h jansson.h jpeglib.h png.h \
		  webp/decode.h pcre2.h utf8proc.h zlib.h
PROGRAMS	= gcc sqlite3 mandoc prove
MISSING		:= $(strip $(foreach h,$(HEADERS),$(if $(wildcard \
		  /usr/include/$(h) /usr/include/*-linux-gnu/$(h) \
		  /usr/local/include/$(h)),,$(h))) \
		  $(foreach p,$(PROGRAMS),$(if $(wildcard $(addsuffix /$(p),\
		  $(subst :, ,$(PATH)))),,$(p))))
SUDO		= $(if $(filter 0,$(shell id -u)),,sudo)

deps:
	@echo "installing: $(PACKAGES)"
	@$(SUDO) apt-get update -qq
	@DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq \
	    --no-install-recommends $(PACKAGES) > /dev/null

deps-check:
	@$(if $(MISSING),echo "missing: $(MISSING)"; $(MAKE) --no-print-directory deps)
