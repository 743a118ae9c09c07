// Asks flags by OpenFeature's own provider for servers: questions on standard input, what came of each on standard output, as JSON.
// client.mjs BASE [TOKEN]
import { readFileSync } from 'node:fs';
import { OpenFeature } from '@openfeature/server-sdk';
import { OFREPProvider } from '@openfeature/ofrep-provider';

const [baseUrl, token] = process.argv.slice(2);
const headers = token ? [['Authorization', `Bearer ${token}`]] : [];
await OpenFeature.setProviderAndWait(new OFREPProvider({ baseUrl, headers }));
const client = OpenFeature.getClient();
const ask = {
  Boolean: client.getBooleanDetails,
  Float: client.getNumberDetails,
  Integer: client.getNumberDetails,
  Object: client.getObjectDetails,
  String: client.getStringDetails,
};

const answers = [];
for (const question of JSON.parse(readFileSync(0, 'utf8'))) {
  const details = await ask[question.type].call(client, question.key, question.default, question.context);
  answers.push({
    value: details.value,
    variant: details.variant,
    reason: details.reason,
    error: details.errorCode,
    message: details.errorMessage,
    metadata: details.flagMetadata,
  });
}
process.stdout.write(JSON.stringify(answers));
